"""The policy that follows prompts to the workers that have read them.

*Invariant*: a call goes to a worker out of affinity only if that worker was given, before, a whole prompt
that this one begins with, and only while that worker's load is not out of balance.

*Theory of operation*: prompts are kept in a radix tree of bytes; where a prompt ends, the tree holds the
ordinals of the workers that were given it. The longest earlier prompt that a new one continues (or equals) is
the last such place on the way down. A group's samples equal the group's first one; a turn continues the turn
before. Prompts that merely begin alike, with the same system prompt, say, do not attract each other: every
worker will hold that beginning soon anyway, and sending all of them to the one that read it first is how
other routers flood a worker. A prompt that continues none goes to the least busy worker, so groups are spread
as evenly as can be.

A reply's tokens are never seen here, so a match says where a prompt was read, not how much of it is cached;
therefore there is no threshold on the matched share, which is small after a long reply although all of it
is in the worker's cache.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import count
from operator import attrgetter
from typing import Final

from ...calls import Call
from ...middleware.radix import Match, Node, RadixIndex
from ...policies import CandidateT, Policy
from .balancing import LeastInFlight, TieBreak
from .options import number, whole_number
from .prompts import prompt_of

BYTES_PER_PROMPT: Final = 1000
"""What a prompt costs besides its own bytes: nodes, their tables, and its place in the order of use."""

_in_flight = attrgetter("in_flight")
_ordinal = attrgetter("ordinal")


class PrefixAffinity:
    """A prompt goes where its beginning was read; others to the least busy.

    That keeps a group's samples, and a trajectory's turns, on the worker that has their prefix cached. A
    worker is let go of when its load is out of balance: it holds more than `balance_abs_threshold` calls
    above the least busy one, and more than `balance_rel_threshold` times as many. `max_index_bytes` bounds
    the memory for prompts; what was not used for longest goes first. `ties` is `least_inflight`'s.
    """

    def __init__(
        self,
        *,
        balance_abs_threshold: int = 64,
        balance_rel_threshold: float = 1.5,
        max_index_bytes: int = 64 << 20,
        ties: str = TieBreak.ROTATE,
    ) -> None:
        self._abs = whole_number("balance_abs_threshold", balance_abs_threshold, least=0)
        self._rel = number("balance_rel_threshold", balance_rel_threshold, least=1)
        self._places = PromptPlaces(max_bytes=whole_number("max_index_bytes", max_index_bytes, least=1))
        self._least_busy = LeastInFlight(ties=ties)

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:
        """Return a worker that has read the beginning of the call's prompt, unless it is too busy."""
        prompt = prompt_of(call)
        if prompt is None:
            return self._least_busy.choose(call, candidates)
        match = self._places.match(prompt)
        chosen = self._holder(match, candidates) or self._least_busy.choose(call, candidates)
        self._places.add(prompt, match, chosen.ordinal)
        return chosen

    def _holder(self, match: "Match[int]", candidates: Sequence[CandidateT]) -> CandidateT | None:
        """Return the least busy worker of those that hold the prompt, unless it is out of balance."""
        for ordinals in PromptPlaces.holders(match):
            present = [one for one in (_find(candidates, each) for each in ordinals) if one is not None]
            if present:
                best = min(present, key=_in_flight)
                return None if self._is_out_of_balance(best.in_flight, candidates) else best
        return None

    def _is_out_of_balance(self, load: int, candidates: Sequence[CandidateT]) -> bool:
        """Tell whether a worker with `load` calls must be let go of.

        SGLang's router asks this of the busiest worker, and then forgets affinity for all of them; here it
        is asked of the worker in question, and the others keep theirs.
        """
        if load <= self._abs:
            return False
        least: int = min(map(_in_flight, candidates))
        return load - least > self._abs and load > self._rel * least


class PromptPlaces:
    """Remembers which workers were given which prompts; within `max_bytes`, those used last are kept."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._index: RadixIndex[int] = RadixIndex()
        self._stamps = count(1)
        self._uses: OrderedDict[tuple[Node[int], int], None] = OrderedDict()

    def __len__(self) -> int:
        """Count the prompts, once for each worker."""
        return len(self._uses)

    @property
    def size_bytes(self) -> int:
        """What is held, at most `max_bytes`: prompts, shared beginnings counted once, and what keeps them."""
        return self._index.label_bytes + BYTES_PER_PROMPT * len(self._uses)

    def match(self, prompt: bytes) -> "Match[int]":
        """Return how far `prompt` is known."""
        return self._index.match(prompt)

    @staticmethod
    def holders(match: "Match[int]") -> "Iterable[Iterable[int]]":
        """Yield the holders of the earlier prompts that the matched one continues, of the longest first.

        Those of one prompt come in the order in which they were given it.
        """
        for node in match.last_node.ancestry():
            if node.has_values:
                yield reversed(list(node.values()))

    def add(self, prompt: bytes, match: "Match[int]", ordinal: int) -> None:
        """Note that the worker was given `prompt`, of which `match` is the match."""
        known = match.last_node
        node = self._index.insert(prompt[known.end :], ordinal, next(self._stamps), after=known)
        use = (node, ordinal)
        self._uses[use] = None
        self._uses.move_to_end(use)
        while self.size_bytes > self._max_bytes:
            (oldest, holder), _ = self._uses.popitem(last=False)
            self._index.remove(oldest, holder)


def _find(candidates: Sequence[CandidateT], ordinal: int) -> CandidateT | None:
    at = bisect_left(candidates, ordinal, key=_ordinal)
    return candidates[at] if at < len(candidates) and candidates[at].ordinal == ordinal else None


_: type[Policy] = PrefixAffinity
