"""Segments within a budget: what they are called, who holds them, and what goes when there is no room.

Theory of operation: two prefix indices lead to segments, one over text and one over token ids, both holding
the end of every prompt and of every generation. A running call holds the segments it builds on, a child holds
its parent, and what nothing holds can go: a context at once, a generation when the budget needs its room,
least recently used first.

A generation is forgotten when it is deleted, when its session was not used for a time, or when its weights
are too old: it loses its names (see `names`), so that nobody gets it any more, and goes as soon as nothing
holds it. Where later generations follow from it, its tokens stay for them: they would not be what they are
without it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from .names import Names
from .radix import Node, RadixIndex
from .segments import TOKEN_ID_BYTES, Generation, Segment

SEGMENT_BYTES = 900
"""What a segment costs beside its tokens and text: the objects of itself, its index nodes and its names."""

TOKEN_BYTES = TOKEN_ID_BYTES
"""A token's id, in the index."""

SESSIONS_A_SWEEP = 16
"""How many sessions one recorded call lets expire at most, so that no call waits for thousands of them."""


class SegmentStore:
    """Keeps segments, in the order in which they were used."""

    def __init__(
        self,
        *,
        max_cached_tokens: int,
        max_cached_bytes: int,
        max_version_lag: int | None = None,
        session_ttl_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the bounds.

        Generations more than `max_version_lag` weight versions behind the newest are dropped, and sessions
        that were not used for `session_ttl_s` seconds of `clock`; None keeps both while there is room.
        """
        self._max_cached_tokens = max_cached_tokens
        self._max_cached_bytes = max_cached_bytes
        self._max_version_lag = max_version_lag
        self._session_ttl_s = session_ttl_s
        self._clock = clock
        self._texts: RadixIndex[Segment] = RadixIndex()
        self._ids: RadixIndex[Segment] = RadixIndex()
        self._names = Names()
        self._leaves: OrderedDict[Generation, None] = OrderedDict()
        self._ordinal = 0
        self._segment_bytes = 0
        self.cached_tokens = 0
        self.evicted_tokens = 0
        self.expired_sessions = 0
        self.outdated_trajectories = 0

    @property
    def trajectories(self) -> int:
        """How many trajectories can be asked for."""
        return self._names.generations

    @property
    def sessions(self) -> int:
        """How many sessions have a trajectory."""
        return self._names.sessions

    @property
    def cached_bytes(self) -> int:
        """Estimate of the memory that the recorded segments take."""
        return self._segment_bytes + self._texts.label_bytes

    @property
    def root(self) -> "Node[Segment]":
        """Where the index over token ids begins: to look at, until the tree changes."""
        return self._ids.match(b"").node

    def get(self, rid: str) -> Generation | None:
        """Return the generation that the request `rid` made, the latest if there are several."""
        generation = self._names.by_rid(rid)
        if generation is not None:
            self._touch(generation)
        return generation

    def session(self, session_id: str) -> list[Generation]:
        """Return the generations of a session, oldest first; none where it is not known, or has expired."""
        self._names.use_session(session_id, self._clock())
        return list(self._names.session(session_id))

    def forget(self, rid: str) -> bool:
        """Forget what `get` returns for `rid`; say whether there was something."""
        generation = self._names.by_rid(rid)
        if generation is None:
            return False
        self._forget([generation])
        return True

    def forget_session(self, session_id: str) -> int:
        """Forget a session's generations; return how many there were."""
        return self._forget(self._names.session(session_id))

    def expire(self, now_s: float, *, at_most: int | None = None) -> int:
        """Forget the sessions that were not used lately, `at_most` so many; return how many generations."""
        if self._session_ttl_s is None:
            return 0
        expired = self._names.sessions_unused_since(now_s - self._session_ttl_s, at_most)
        self.expired_sessions += len(expired)
        return sum(self.forget_session(session_id) for session_id in expired)

    def drop_versions_before(self, version: str) -> int:
        """Forget the generations that ended with weights older than `version`; return how many.

        Nothing happens where `version` was never seen: what is older than it is then not known.
        """
        dropped = self._forget(self._names.older_than(version))
        self.outdated_trajectories += dropped
        return dropped

    def _next_ordinal(self) -> int:
        self._ordinal += 1
        return self._ordinal

    def _keep(self, generation: Generation) -> None:
        """Take a new generation in, with its names, and make room for it."""
        self._leaves[generation] = None
        self._add(generation)
        now_s = self._clock()
        if self._names.add(generation, now_s):
            self._drop_outdated()
        self.expire(now_s, at_most=SESSIONS_A_SWEEP)
        self._evict()

    def _add(self, segment: Segment) -> None:
        if segment.parent is not None:
            self._take(segment.parent)
        self.cached_tokens += segment.size
        self._segment_bytes += _cost_bytes(segment)

    def _take(self, segment: Segment) -> None:
        segment.holders += 1
        if isinstance(segment, Generation):
            self._leaves.pop(segment, None)

    def _touch(self, generation: Generation) -> None:
        if generation in self._leaves:
            self._leaves.move_to_end(generation)

    def _let_go(self, segment: Segment, *, is_recent: bool) -> None:
        """Drop a holder; what nobody holds or asks for goes, other generations wait for the budget."""
        each: Segment | None = segment
        while each is not None:
            each.holders -= 1
            if each.holders > 0:
                return
            if isinstance(each, Generation) and not each.is_forgotten:
                self._leaves[each] = None
                self._leaves.move_to_end(each, last=is_recent)
                return
            self._remove(each)
            each = each.parent

    def _evict(self) -> None:
        while self._leaves and (
            self.cached_tokens > self._max_cached_tokens or self.cached_bytes > self._max_cached_bytes
        ):
            before = self.cached_tokens
            self._forget([next(iter(self._leaves))])
            self.evicted_tokens += before - self.cached_tokens

    def _drop_outdated(self) -> None:
        oldest = (
            self._names.versions.back(self._max_version_lag) if self._max_version_lag is not None else None
        )
        if oldest is not None:
            self.drop_versions_before(oldest)

    def _forget(self, generations: Iterable[Generation]) -> int:
        """Take the generations' names away; what nobody holds goes at once. Return how many there were."""
        forgotten = list(generations)
        for generation in forgotten:
            self._names.remove(generation)
            generation.is_forgotten = True
            if generation in self._leaves:
                del self._leaves[generation]
                self._remove(generation)
                if generation.parent is not None:
                    self._let_go(generation.parent, is_recent=False)
        return len(forgotten)

    def _remove(self, segment: Segment) -> None:
        """Take a segment out of the indices. Its parent's holder is for the caller to drop."""
        self.cached_tokens -= segment.size
        self._segment_bytes -= _cost_bytes(segment)
        assert segment.ids_node is not None
        self._ids.remove(segment.ids_node, segment)
        text_node, segment.ids_node, segment.text_node = segment.text_node, None, None
        if text_node is not None:
            self._texts.remove(text_node, segment)
        if not isinstance(segment, Generation):
            return
        if segment.visible_node is not None and segment.visible_node is not text_node:
            self._texts.remove(segment.visible_node, segment)
        segment.visible_node = None


def _cost_bytes(segment: Segment) -> int:
    token_bytes = TOKEN_BYTES
    if isinstance(segment, Generation) and segment.logprobs is not None:
        token_bytes += segment.logprobs.itemsize
    return SEGMENT_BYTES + token_bytes * segment.size
