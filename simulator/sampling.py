"""Log-probabilities of the simulated model.

Invariant: the log-probability of a token depends on the ids before it, the token and the weight version, on
nothing else: not on the worker, the seed, the temperature, or how the ids are split into prompt and reply.

`LogprobState` is the rolling form: a hash of the ids so far that one token extends, so that a reply of n
tokens costs O(n). The logarithms come from a table of float32 values whose distribution looks like a
confident model's: the median is -0.07 nats, one in a thousand is below -7.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from .dice import mix, mix_text

_TABLE_BITS = 14
"""16,384 different log-probabilities: two tokens that were mixed up are told apart with near certainty."""

_BITS = 60
"""Two digits of a Python integer: the hash costs half of what one of 64 bits does."""

_MASK = (1 << _BITS) - 1
_SHIFT = _BITS - _TABLE_BITS
_FACTOR = 0x9E3779B97F4A7C5
"""Odd, with bits all over, so that the top bits depend on every id."""

_NATS_PER_SQUARE = 0.15
"""The log-probability is minus this times the square of an exponentially distributed number."""


def _logprob_table() -> tuple[float, ...]:
    size = 1 << _TABLE_BITS
    values = [-_NATS_PER_SQUARE * math.log1p(-(i + 0.5) / size) ** 2 for i in range(size)]
    return struct.unpack(f"{size}f", struct.pack(f"{size}f", *values))


_TABLE = _logprob_table()


class LogprobState:
    """The ids so far, as far as log-probabilities depend on them."""

    __slots__ = ("value",)

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.value = 0
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Add `ids` to the ids so far."""
        value = self.value
        for token_id in ids:
            value = (value + token_id + 1) * _FACTOR & _MASK
        self.value = value

    def logprob(self, token_id: int, weight_version: str) -> float:
        """Return the log-probability, in nats, of `token_id` after the ids so far; the state stays."""
        value = (self.value + token_id + 1) * _FACTOR & _MASK
        return _TABLE[(value ^ _version_hash(weight_version)) >> _SHIFT]

    def sample(self, ids: Iterable[int], weight_version: str) -> list[float]:
        """Extend the state by `ids`; return the log-probability of each where it stands."""
        version, value, table = _version_hash(weight_version), self.value, _TABLE
        logprobs = [
            table[((value := (value + token_id + 1) * _FACTOR & _MASK) ^ version) >> _SHIFT]
            for token_id in ids
        ]
        self.value = value
        return logprobs

    def candidates(self, count: int, vocabulary: int) -> list[int]:
        """Return `count` ids that the model also finds likely here; the state stays."""
        return [mix(self.value + number) % vocabulary for number in range(count)]


@lru_cache(maxsize=1024)
def _version_hash(weight_version: str) -> int:
    return mix_text(weight_version) & _MASK


def token_logprob(ids_so_far: Sequence[int], token_id: int, weight_version: str) -> float:
    """Return the log-probability, in nats, of `token_id` after `ids_so_far`: negative, exact in float32.

    Costs O(len(ids_so_far)); `LogprobState` is the form for a whole reply.
    """
    return LogprobState(ids_so_far).logprob(token_id, weight_version)
