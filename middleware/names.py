"""What a generation is asked for by: its request id, its session, the weight version it ended with.

Invariant: a generation is here under each of its names or under none. What the tree keeps only because later
generations follow from it has no name any more.

Sessions stand in the order of their last use, so that those that were not used for a time are at the front:
no timer runs for any of them.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from .segments import Generation
from .weight_versions import WeightVersions

_NO_GENERATIONS: dict[Generation, None] = {}


class Names:
    """Leads from names to generations."""

    def __init__(self) -> None:
        self._by_rid: dict[str, Generation] = {}
        self._sessions: dict[str, dict[Generation, None]] = {}
        self._used_at_s: OrderedDict[str, float] = OrderedDict()
        self._by_version: dict[str, dict[Generation, None]] = {}
        self.versions = WeightVersions()
        self.generations = 0

    @property
    def sessions(self) -> int:
        """How many sessions there are."""
        return len(self._sessions)

    def add(self, generation: Generation, now_s: float) -> bool:
        """Add a generation under its names, and say whether it brings a weight version never seen before."""
        self.generations += 1
        self._by_rid[generation.rid] = generation
        if generation.session_id is not None:
            self._sessions.setdefault(generation.session_id, {})[generation] = None
            self._used_at_s[generation.session_id] = now_s
            self._used_at_s.move_to_end(generation.session_id)
        if generation.last_version is not None:
            self._by_version.setdefault(generation.last_version, {})[generation] = None
        return [self.versions.see(span.version) for span in generation.weight_versions].count(True) > 0

    def remove(self, generation: Generation) -> None:
        """Remove a generation from under all its names."""
        self.generations -= 1
        if self._by_rid.get(generation.rid) is generation:
            del self._by_rid[generation.rid]
        session_id, version = generation.session_id, generation.last_version
        if session_id is not None and _remove(self._sessions, session_id, generation):
            del self._used_at_s[session_id]
        if version is not None:
            _remove(self._by_version, version, generation)

    def by_rid(self, rid: str) -> Generation | None:
        """Return the generation that the request `rid` made, the latest if there are several."""
        return self._by_rid.get(rid)

    def session(self, session_id: str | None) -> dict[Generation, None]:
        """Return a session's generations, oldest first: to read, not to keep or change."""
        return self._sessions.get(session_id, _NO_GENERATIONS) if session_id is not None else _NO_GENERATIONS

    def use_session(self, session_id: str | None, now_s: float) -> None:
        """Take note that a session is still in use."""
        if session_id is not None and session_id in self._used_at_s:
            self._used_at_s[session_id] = now_s
            self._used_at_s.move_to_end(session_id)

    def sessions_unused_since(self, time_s: float, at_most: int | None = None) -> list[str]:
        """Return the sessions that were last used before `time_s`, the longest unused first."""
        return list(islice(self._unused_since(time_s), at_most))

    def older_than(self, version: str) -> list[Generation]:
        """Return the generations that ended with a weight version older than `version`, oldest first."""
        older = self.versions.before(version)
        return [each for old in older for each in self._by_version.get(old, _NO_GENERATIONS)]

    def _unused_since(self, time_s: float) -> Iterator[str]:
        for session_id, used_at_s in self._used_at_s.items():
            if used_at_s >= time_s:
                return
            yield session_id


def _remove(groups: dict[str, dict[Generation, None]], name: str, generation: Generation) -> bool:
    """Remove a generation from its group, and say whether the group has gone with it."""
    group = groups[name]
    del group[generation]
    if group:
        return False
    del groups[name]
    return True
