"""Random numbers that are the same on every machine and Python version."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

MASK_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """Return a well-scattered 64-bit hash of a number below 2**64. Source: SplitMix64's finalizer."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


def mix_text(text: str) -> int:
    """Return a 64-bit hash of a short text."""
    value = 0
    for byte in text.encode():
        value = mix((value + byte + _GOLDEN) & MASK_64)
    return value


class Dice:
    """A SplitMix64 generator. Equal seeds give equal throws."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & MASK_64

    def throw(self) -> int:
        """Return a number of 64 bits."""
        self._state = (self._state + _GOLDEN) & MASK_64
        return mix(self._state)

    def below(self, limit: int) -> int:
        """Return a number from 0 to `limit` - 1."""
        return (self.throw() * limit) >> 64

    def between(self, first: int, last: int) -> int:
        """Return a number from `first` to `last`, both included."""
        return first + self.below(last - first + 1)

    def happens(self, probability: float) -> bool:
        """Say yes with `probability`."""
        return self.throw() < probability * (1 << 64)

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of `choices`, which must not be empty."""
        return choices[self.below(len(choices))]
