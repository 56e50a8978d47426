"""The rule of SGLang's `cache_aware`, written anew from its description, to compare with.

Out of balance (busiest worker against least busy): the least busy worker. Else the worker of the longest
known prefix, if that is a big enough part of the prompt; else the least busy worker.
"""

from collections.abc import Sequence
from itertools import count

from espalier.calls import Call
from espalier.middleware.radix import RadixIndex
from espalier.policies import CandidateT
from espalier.router.policies import LeastInFlight
from espalier.router.policies.prompts import prompt_of


class CacheAwareRule:
    """Follows any common beginning; its memory is not bounded."""

    def __init__(
        self,
        *,
        cache_threshold: float = 0.3,
        balance_abs_threshold: int = 64,
        balance_rel_threshold: float = 1.5,
    ) -> None:
        self._cache_threshold = cache_threshold
        self._abs = balance_abs_threshold
        self._rel = balance_rel_threshold
        self._index: RadixIndex[int] = RadixIndex()
        self._stamps = count(1)
        self._least_busy = LeastInFlight()

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:
        """Return a worker for the call."""
        prompt = prompt_of(call) or b""
        loads = [one.in_flight for one in candidates]
        chosen = None
        if not (max(loads) - min(loads) > self._abs and max(loads) > self._rel * min(loads)):
            match = self._index.match(prompt)
            if match.length > self._cache_threshold * len(prompt):
                chosen = next((one for one in candidates if one.ordinal == match.node.latest), None)
        if chosen is None:
            chosen = self._least_busy.choose(call, candidates)
        self._index.insert(prompt, chosen.ordinal, next(self._stamps))
        return chosen
