"""How old the weights are that a group was sampled from, counted in updates.

Versions that are whole numbers count as such. Others have no order of their own: they count in the order in
which they were first heard of. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from .sample import Sample


@dataclass(slots=True)
class WeightHistory:
    """The weight versions heard of so far."""

    _seen: list[str] = field(default_factory=list)

    def note(self, version: str | None) -> None:
        """Hear of `version`; None, from workers that do not tell, says nothing."""
        if version is not None and version not in self._seen:
            self._seen.append(version)

    def age(self, version: str) -> int:
        """Return how many updates came after `version`; 0 for one that is new."""
        numbers = [int(known) for known in self._seen if _is_number(known)]
        if _is_number(version) and len(numbers) == len(self._seen):
            return max([0, *(number - int(version) for number in numbers)])
        return len(self._seen) - 1 - self._seen.index(version) if version in self._seen else 0

    def age_of(self, samples: Iterable[Sample]) -> int:
        """Return the age of the oldest weights that sampled any of `samples`."""
        versions = {version for sample in samples for version in sample.weight_versions}
        return max((self.age(version) for version in versions), default=0)


def _is_number(version: str) -> bool:
    return version.isascii() and version.isdigit()
