"""Counts what happened to each request id, so that a test can prove that a request was generated once."""

from collections import OrderedDict

import msgspec

MAX_RIDS = 100_000
"""Request ids that are counted one by one; the oldest go first. The totals count all."""


class Counts(msgspec.Struct):
    """How often a request id was received, came to its end, was aborted, and lost its client."""

    received: int = 0
    finished: int = 0
    aborted: int = 0
    disconnected: int = 0


class Counters:
    """`totals`, and `by_rid` for the latest request ids. An aborted generation does not count as finished."""

    def __init__(self, max_rids: int = MAX_RIDS) -> None:
        self.totals = Counts()
        self.by_rid: OrderedDict[str, Counts] = OrderedDict()
        self._max_rids = max_rids

    def receive(self, rid: str) -> None:
        """Count a generation that was asked for."""
        self.totals.received += 1
        self._of(rid).received += 1

    def end(self, rid: str, *, aborted: bool) -> None:
        """Count the end of a generation."""
        counts = self._of(rid)
        if aborted:
            self.totals.aborted += 1
            counts.aborted += 1
        else:
            self.totals.finished += 1
            counts.finished += 1

    def disconnect(self, rid: str) -> None:
        """Count a generation whose client left before it got the whole reply."""
        self.totals.disconnected += 1
        self._of(rid).disconnected += 1

    def _of(self, rid: str) -> Counts:
        counts = self.by_rid.get(rid)
        if counts is None:
            counts = self.by_rid[rid] = Counts()
            if len(self.by_rid) > self._max_rids:
                self.by_rid.popitem(last=False)
        return counts
