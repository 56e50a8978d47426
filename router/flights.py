"""The calls that are on their way to a worker or at one, found by the names that their clients know."""

from collections.abc import Iterator
from typing import NamedTuple

from ..calls import Call
from .rids import Naming, generated_rids, listed_rids
from .workers import Worker


class Flight:
    """One call, from its arrival to the last byte of its reply."""

    __slots__ = (
        "attempts",
        "began_at_s",
        "call",
        "is_aborted",
        "naming",
        "number",
        "rid",
        "sent_at_s",
        "worker",
    )

    def __init__(self, call: Call, naming: Naming | None, began_at_s: float) -> None:
        """Take a call and how it is named; `began_at_s` is of the loop's clock."""
        self.call = call
        self.naming = naming
        self.began_at_s = began_at_s
        self.sent_at_s = began_at_s
        self.number = 0
        """What its rids have in common."""
        self.attempts = 0
        self.rid = b""
        self.worker: Worker | None = None
        """Where its latest attempt is, under the name `rid`."""
        self.is_aborted = False
        """Whether its client asked for its end: then it is not sent again."""

    def generated_rids(self) -> list[str]:
        """Return the rids that its worker generates it under; none where they cannot be known."""
        if self.naming is None:
            return listed_rids(self.call)
        return generated_rids(self.call, self.rid.decode())


class Target(NamedTuple):
    """What an abort means: these rids, at the worker of this call."""

    flight: Flight
    rids: list[str]


class Flights:
    """All named calls. A client may give several the same rid: aborting it ends them all."""

    def __init__(self) -> None:
        self._by_rid: dict[bytes, Flight] = {}
        self._by_client_rid: dict[str, dict[Flight, None]] = {}

    def __iter__(self) -> Iterator[Flight]:
        """Iterate over the calls."""
        return iter(tuple(self._by_rid.values()))

    def depart(self, flight: Flight, rid: bytes) -> None:
        """Let a call be found under a new attempt's rid, and its client's, until `land`."""
        if flight.rid:
            self._by_rid.pop(flight.rid, None)
        elif flight.naming is not None and flight.naming.client_rid is not None:
            self._by_client_rid.setdefault(flight.naming.client_rid, {})[flight] = None
        flight.rid = rid
        self._by_rid[rid] = flight

    def land(self, flight: Flight) -> None:
        """Let go of a call. Harmless when repeated."""
        self._by_rid.pop(flight.rid, None)
        if flight.naming is None or flight.naming.client_rid is None:
            return
        named = self._by_client_rid.get(flight.naming.client_rid)
        if named is not None:
            named.pop(flight, None)
            if not named:
                del self._by_client_rid[flight.naming.client_rid]

    def find(self, rid: str) -> list[Target]:
        """Return what is known by `rid`: calls, or one prompt of a batch (`RID_3`)."""
        whole = self._known_as(rid)
        if whole:
            return [Target(flight, flight.generated_rids()) for flight in whole]
        parent, _, index = rid.rpartition("_")
        if not index.isdecimal():
            return []
        return [Target(flight, [f"{flight.rid.decode()}_{index}"]) for flight in self._known_as(parent)]

    def find_beginning(self, prefix: str) -> list[Target]:
        """Return all calls whose client's rid begins with `prefix`."""
        rids = [rid for rid in self._by_client_rid if rid.startswith(prefix)]
        return [target for rid in rids for target in self.find(rid)]

    def _known_as(self, rid: str) -> list[Flight]:
        named = self._by_client_rid.get(rid)
        if named:
            return list(named)
        flight = self._by_rid.get(rid.encode(errors="replace"))
        return [flight] if flight is not None else []
