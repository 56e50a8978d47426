"""Policies where a key belongs to a worker, and hardly any key moves when a worker joins or leaves.

*Invariant*: which worker a key belongs to depends on the key and on the URLs of the candidates alone: not on
the order in which they joined, not on earlier calls, and not on the process. Two routers over the same
workers agree, and a worker that comes back gets its keys back.

*Theory of operation*: every worker stands at `POINTS_PER_WORKER` points of a ring, given by hashes of its
URL. A key belongs to the first candidate clockwise from the key's own hash. A worker that stands on the ring
but is no candidate now is passed by, which gives the same answer as taking it off; so the ring is not built
anew when a worker is away for a moment. Those that stay away are cleared out once they are the majority.
"""

import hashlib
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Final

from ...calls import Call
from ...errors import BadRequest
from ...policies import Candidate, CandidateT, Policy
from .balancing import RoundRobin
from .options import number

POINTS_PER_WORKER: Final = 160
"""More points, more even shares: with 160 a worker's share of the keys is within about 8 % (one standard
deviation) of its due. They cost 20 hashes when a worker joins."""

_BYTES_PER_POINT: Final = 8
_POINTS_PER_HASH: Final = hashlib.blake2b.MAX_DIGEST_SIZE // _BYTES_PER_POINT
_ROUTING_KEY: Final = b"x-smg-routing-key"
_SESSION_HEADER: Final = b"x-session-id"

_url = attrgetter("url")


class WorkerRing:
    """Tells which workers a key belongs to, in order of preference."""

    def __init__(self) -> None:
        self._candidates: Sequence[Candidate] = ()
        self._positions: dict[str, int] = {}
        self._members: set[str] = set()
        self._points: list[tuple[int, str]] = []

    def __len__(self) -> int:
        """Count the workers on the ring: at most three times as many as are candidates."""
        return len(self._members)

    def positions(self, key: bytes, candidates: Sequence[Candidate]) -> Iterator[int]:
        """Yield positions in `candidates`, the key's own worker first; each comes at least once."""
        if candidates is not self._candidates:
            self._take_in(candidates)
        positions, points = self._positions, self._points
        start = bisect_left(points, (_point(key),))
        for at in range(start - len(points), start):  # from -n on, to go once around
            position = positions.get(points[at][1])
            if position is not None:
                yield position

    def _take_in(self, candidates: Sequence[Candidate]) -> None:
        urls = list(map(_url, candidates))
        self._positions = {url: at for at, url in enumerate(urls)}
        # Only what cannot change may be recognised by its identity.
        self._candidates = candidates if isinstance(candidates, tuple) else ()
        if len(self._members) > 2 * len(urls):
            self._members.clear()
            self._points.clear()
        new = self._positions.keys() - self._members
        if new:
            self._members |= new
            self._points += [(point, url) for url in new for point in _points_of(url)]
            self._points.sort()


class ConsistentHashing:
    """A session stays on one worker; few move when workers change.

    About 1/n of the sessions move when one of n workers joins or leaves. The session is what the header
    `X-SMG-Routing-Key` says, else the body's `session_id`, else the header `X-Session-ID`. A call that names
    none goes to the next worker in rotation.

    With `max_load_factor` (1 or more) a worker that holds more than so many times the average number of calls
    is passed by, and its sessions' calls go to the next worker on the ring meanwhile.
    Source: V. Mirrokni, M. Thorup, M. Zadimoghaddam, Consistent Hashing with Bounded Loads, 2016.
    """

    def __init__(self, *, max_load_factor: float | None = None) -> None:
        self._max_load_factor = (
            None if max_load_factor is None else number("max_load_factor", max_load_factor, least=1)
        )
        self._ring = WorkerRing()
        self._rotation = RoundRobin()

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:
        """Return the worker that the call's session belongs to."""
        key = session_key(call)
        if key is None:
            return self._rotation.choose(call, candidates)
        positions = self._ring.positions(key, candidates)
        if self._max_load_factor is None:
            return candidates[next(positions)]
        calls = 1 + sum(one.in_flight for one in candidates)
        # Some worker is always below: all of them at the bound would hold more than `calls` together.
        bound = self._max_load_factor * calls / len(candidates)
        return next(candidates[at] for at in positions if candidates[at].in_flight < bound)


class Deterministic:
    """The same body goes to the same worker, whatever the load.

    That is for the same set of workers, and for runs that must be repeatable to the last bit. Equal bodies,
    such as a group's samples without seeds of their own, all go to one worker; a body that holds a random
    `rid` is another body each time.
    """

    def __init__(self) -> None:
        self._ring = WorkerRing()

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:
        """Return the worker that the body's checksum belongs to."""
        checksum = zlib.crc32(call.body).to_bytes(4, "big")
        return candidates[next(self._ring.positions(checksum, candidates))]


def session_key(call: Call) -> bytes | None:
    """Return what names the call's session, or None where nothing does; an empty name is none."""
    key = call.header(_ROUTING_KEY)
    if key:
        return key
    if b'"session_id"' in call.body:  # spares the others the parsing
        try:
            session_id = call.json().get("session_id")
        except BadRequest:
            session_id = None
        if isinstance(session_id, str) and session_id:
            return session_id.encode(errors="surrogatepass")
    return call.header(_SESSION_HEADER) or None


def _point(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=_BYTES_PER_POINT).digest(), "big")


def _points_of(url: str) -> Iterator[int]:
    name = url.encode()
    for number_of_hash in range(POINTS_PER_WORKER // _POINTS_PER_HASH):
        digest = hashlib.blake2b(b"%d %s" % (number_of_hash, name)).digest()
        for start in range(0, len(digest), _BYTES_PER_POINT):
            yield int.from_bytes(digest[start : start + _BYTES_PER_POINT], "big")


_: tuple[type[Policy], ...] = (ConsistentHashing, Deterministic)
