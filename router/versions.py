"""Which of several weight versions is the newest.

Versions are names that training gives, and only training knows their order. Nearly all count their steps, so
whole numbers are compared as such. Other names are ordered by when they were first seen: weights only ever
move on. `default` is what SGLang calls weights that nobody has named, and is older than any other.

Only the newest is ever asked for, never an order of two: between numbers and other names no order could be
consistent (by value 3 < 5; seen were 5, then "a", then 3).
"""

from collections.abc import Collection
from typing import Final

UNNAMED: Final = "default"
"""The version of weights that were never updated."""

MAX_VERSION_CHARS: Final = 256
"""Longer ones are no names; they come from a worker that is broken, and are not kept."""

MAX_REMEMBERED: Final = 10_000
"""Versions whose first sight is remembered. Some are back after they left every worker: an engine that was
restarted with old weights must not look like news."""


class VersionOrder:
    """Remembers when each version was first seen."""

    def __init__(self) -> None:
        self._ranks: dict[str, int] = {}
        self._seen_total = 0

    def see(self, version: str) -> None:
        """Take note of a version; one that was seen before keeps its place."""
        if version in self._ranks:
            return
        self._seen_total += 1
        self._ranks[version] = self._seen_total
        if len(self._ranks) > MAX_REMEMBERED:
            del self._ranks[next(iter(self._ranks))]

    def newest(self, versions: Collection[str]) -> str | None:
        """Return the newest of `versions`; None where there are none."""
        named = {version for version in versions if version != UNNAMED}
        if not named:
            return UNNAMED if versions else None
        if all(_is_number(version) for version in named):
            return max(named, key=int)
        return max(named, key=lambda version: self._ranks.get(version, 0))


def _is_number(version: str) -> bool:
    return version.isascii() and version.isdigit()
