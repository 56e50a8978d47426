"""Which prompts a worker has read, so that it can tell how many tokens of the next one are cached.

Invariant: `_sorted` holds the keys of `_sequences`, sorted. A key is the ids as big-endian 32-bit numbers, so
keys sort as their ids do, and the sequence with the longest common prefix is a neighbour of where a new one
belongs.
"""

import sys
from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence

BYTES_PER_ID = 4


class PrefixCache:
    """Remembers sequences of token ids, up to `max_tokens` of them; the oldest go first."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tokens = 0
        self._sequences: OrderedDict[bytes, None] = OrderedDict()
        self._sorted: list[bytes] = []

    def longest_prefix(self, ids: Sequence[int]) -> int:
        """Return how many of the first `ids` some remembered sequence begins with."""
        key = _key(ids)
        at = bisect_left(self._sorted, key)
        neighbours = self._sorted[max(0, at - 1) : at + 1]
        return max((_common_bytes(key, other) // BYTES_PER_ID for other in neighbours), default=0)

    def add(self, ids: Sequence[int]) -> None:
        """Remember `ids`."""
        key = _key(ids)
        if key in self._sequences:
            self._sequences.move_to_end(key)
            return
        self._sequences[key] = None
        insort(self._sorted, key)
        self._tokens += len(ids)
        while self._tokens > self._max_tokens and len(self._sequences) > 1:
            oldest, _ = self._sequences.popitem(last=False)
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._tokens -= len(oldest) // BYTES_PER_ID

    def clear(self) -> None:
        """Forget everything."""
        self._sequences.clear()
        self._sorted.clear()
        self._tokens = 0


def _key(ids: Sequence[int]) -> bytes:
    numbers = array("I", ids)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


def _common_bytes(left: bytes, right: bytes) -> int:
    """Return the length of the common prefix, by halving: each comparison runs at memcmp's speed."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
