"""Policies that look at the workers, and at nothing of the call but its checksum."""

import random
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from enum import StrEnum
from operator import attrgetter

from ...calls import Call
from ...policies import Candidate, CandidateT, Policy
from .options import one_of, whole_number

_ordinal = attrgetter("ordinal")
_in_flight = attrgetter("in_flight")
_url = attrgetter("url")


class TieBreak(StrEnum):
    """Who is chosen among workers that are equally good: the next in turn, or by checksum of the body."""

    ROTATE = "rotate"
    CHECKSUM = "checksum"


class RoundRobin:
    """Strict rotation in the order that workers joined.

    What is remembered is the last worker's ordinal, not a position alone, so a worker that joins or leaves
    neither skips another's turn nor gives one twice. The position is where to look first: mostly it is
    right, and a turn costs the same with two workers and with a thousand.
    """

    def __init__(self) -> None:
        self._last_ordinal = 0
        self._next_at = 0

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:  # noqa: ARG002
        """Return the next worker after the last one chosen."""
        at = self._next_at
        if not (0 < at < len(candidates) and candidates[at - 1].ordinal == self._last_ordinal):
            at = _first_after(candidates, self._last_ordinal)
        chosen = candidates[at]
        self._last_ordinal = chosen.ordinal
        self._next_at = at + 1
        return chosen


class RandomChoice:
    """Any worker, by lot. `seed` makes the draws repeatable."""

    def __init__(self, *, seed: int | None = None) -> None:
        self._draw = _draws(seed)

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:  # noqa: ARG002
        """Return a worker, each with the same probability."""
        return candidates[int(self._draw() * len(candidates))]


class LeastInFlight:
    """The worker that holds the fewest calls; ties rotate.

    So an idle fleet is used evenly. With `ties="checksum"` a checksum of the body decides among workers that
    hold equally few: the same body goes to the same worker, as long as the loads are the same too.
    """

    def __init__(self, *, ties: str = TieBreak.ROTATE) -> None:
        self._ties = one_of("ties", ties, TieBreak)
        self._last_ordinal = 0

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:
        """Return one of the workers with the fewest calls in flight."""
        fewest: int = min(map(_in_flight, candidates))
        if self._ties is TieBreak.CHECKSUM:
            # Sorted by URL: the order that workers joined in differs from run to run.
            tied = sorted((one for one in candidates if one.in_flight == fewest), key=_url)
            return tied[zlib.crc32(call.body) % len(tied)]
        at = _first_after(candidates, self._last_ordinal)
        while candidates[at].in_flight != fewest:
            at = (at + 1) % len(candidates)
        chosen = candidates[at]
        self._last_ordinal = chosen.ordinal
        return chosen


class PowerOfTwo:
    """Two workers by lot; of these, the one that holds fewer calls.

    Less even than `least_inflight`, but several routers over the same workers do not all rush to the one that
    is idle. `seed` makes the draws repeatable.
    Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._draw = _draws(seed)

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:  # noqa: ARG002
        """Return the less busy one of two different workers; the first one drawn where they are equal."""
        count = len(candidates)
        first_at = int(self._draw() * count)
        first = candidates[first_at]
        if count == 1:
            return first
        second_at = int(self._draw() * (count - 1))
        second = candidates[second_at + (second_at >= first_at)]
        return second if second.in_flight < first.in_flight else first


def _first_after(candidates: Sequence[Candidate], ordinal: int) -> int:
    """Return the position of the first worker after `ordinal`, from the beginning again after the last."""
    at = bisect_right(candidates, ordinal, key=_ordinal)
    return at if at < len(candidates) else 0


def _draws(seed: int | None) -> Callable[[], float]:
    """Return a source of random numbers from 0 to below 1."""
    return random.Random(None if seed is None else whole_number("seed", seed, least=0)).random


_: tuple[type[Policy], ...] = (RoundRobin, RandomChoice, LeastInFlight, PowerOfTwo)
