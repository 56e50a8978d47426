"""The order of weight versions, which are names: `"3"`, `"step-3"`, `"default"`.

Versions stand in the order in which they were first seen. Those that are whole numbers stand in numerical
order among themselves, so that a late reply of version 9 is not newer than one of version 10.
"""

import re

_WHOLE_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
"""What counts as a number; longer ones are names, for Python refuses to read thousands of digits."""


class WeightVersions:
    """Every version that was seen, oldest first."""

    def __init__(self) -> None:
        self._order: list[str] = []
        self._known: set[str] = set()

    def see(self, version: str) -> bool:
        """Take note of a version, and say whether it is new."""
        if version in self._known:
            return False
        self._known.add(version)
        self._order.insert(self._place(version), version)
        return True

    def before(self, version: str) -> list[str]:
        """Return the versions older than `version`, oldest first; none where it was never seen."""
        return self._order[: self._order.index(version)] if version in self._known else []

    def back(self, lag: int) -> str | None:
        """Return the version `lag` versions before the newest, or None where there are not as many."""
        return self._order[-1 - lag] if lag < len(self._order) else None

    def _place(self, version: str) -> int:
        """Return where in the order a new version goes: before the first greater number, else at the end."""
        number = _number(version)
        if number is None:
            return len(self._order)
        greater = (
            at
            for at, other in enumerate(self._order)
            if (known := _number(other)) is not None and known > number
        )
        return next(greater, len(self._order))


def _number(version: str) -> int | None:
    return int(version) if _WHOLE_NUMBER.fullmatch(version) else None
