"""Generating without end: groups under way, groups that wait to be taken, and those that got too old.

Invariant: groups under way and groups that wait to be taken are at most `fully_async_max_groups` together.
A trainer that is slow therefore stops generation; it never fills the memory.

Groups sampled from weights that are more than `max_weight_staleness` updates old are thrown away or generated
again when they would be taken.

Source: the worker of slime's `fully_async_rollout`, whose output queue has no bound, and the staleness limit
of miles.
"""

import asyncio
import contextlib
import copy
from dataclasses import dataclass, field
from typing import TypeAlias

from ..errors import HttpError, RolloutError
from .batch import Verdict
from .config import RolloutConfig
from .data_source import DataSource
from .groups import generate_and_rm_group
from .leftovers import leftover_groups
from .sample import Sample
from .staleness import WeightHistory
from .state import GroupTask, RolloutState
from .stopping import abort
from .timeline import Timeline
from .verdicts import ABORTED, verdict_of

Group: TypeAlias = list[Sample]
"""The samples of one prompt."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """A group that waits to be taken."""

    samples: Group
    begun: Group
    """the same before anything was sampled for it, in case it gets too old"""


@dataclass(slots=True, kw_only=True)
class Taken:
    """What happened since the last rollout."""

    groups: list[Group] = field(default_factory=list)
    decided: list[Group] = field(default_factory=list)
    dropped: list[Verdict] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    stale: int = 0
    waiting: int = 0
    timeline: Timeline = field(default_factory=lambda: Timeline(requests=[]))


class Producer:
    """Generates groups for as long as it is not closed. Everything but the constructor runs on its loop."""

    def __init__(self, args: RolloutConfig, data_source: DataSource, state: RolloutState) -> None:
        self._args = args
        self._data_source = data_source
        self._state = state
        self._ready: list[_Ready] = []
        self._retries: list[Group] = []
        self._begun: dict[GroupTask, Group] = {}
        """Groups under way, as they were when they were submitted."""
        self._history = WeightHistory()
        self._news = Taken()
        self._rollout_id = 0
        self._dropped_in_a_row = 0
        self._positions = 0
        self._error: BaseException | None = None
        self._changed = asyncio.Condition()
        self._has_room = asyncio.Event()

    async def run(self) -> None:
        """Generate until cancelled. What goes wrong is raised by the next `take`."""
        try:
            while True:
                self._submit()
                await self._settle_next()
        except Exception as error:  # noqa: BLE001  it is raised where somebody waits for groups
            self._error = error
        async with self._changed:
            self._changed.notify_all()

    async def take(self, count: int, rollout_id: int) -> Taken:
        """Wait for `count` groups that are fresh enough, and hand them out, oldest first."""
        self._rollout_id = rollout_id
        with contextlib.suppress(HttpError, RolloutError):
            self._history.note(await self._state.client.weight_version())
        async with self._changed:
            self._set_stale_aside()
            while len(self._ready) < count:
                if self._error is not None:
                    raise self._error
                await self._changed.wait()
                self._set_stale_aside()
            taken, self._news = self._news, Taken()
            oldest, self._ready = self._ready[:count], self._ready[count:]
            taken.groups = [ready.samples for ready in oldest]
            taken.ages = [self._history.age_of(group) for group in taken.groups]
            taken.waiting = len(self._ready)
            taken.timeline = self._state.requests.take()
            self._has_room.set()
        return taken

    async def close(self) -> list[Group]:
        """End what is under way; return the groups to give back to the data source."""
        cut_off = await abort(self._args, self._rollout_id)
        surplus = [ready.samples for ready in self._ready]
        return leftover_groups(
            self._args, self._rollout_id, cut_off=[*self._retries, *cut_off], surplus=surplus
        )

    def _submit(self) -> None:
        state, limit = self._state, self._args.groups_at_a_time
        while len(state.pendings) + len(self._ready) < limit:
            groups = self._retries[:1] or self._data_source.get_samples(1)
            del self._retries[:1]
            if not groups:
                raise RolloutError("the data source has no more groups")
            for group in groups:
                begun = copy.deepcopy(group)
                task = asyncio.create_task(generate_and_rm_group(self._args, group, state.sampling_params))
                self._begun[task] = begun
                state.pendings[task] = (self._positions, group)
                self._positions += 1

    async def _settle_next(self) -> None:
        state = self._state
        self._has_room.clear()
        room = asyncio.create_task(self._has_room.wait())
        try:
            done, _ = await asyncio.wait([*state.pendings, room], return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()
        is_any_lost = False
        finished = [task for task in state.pendings if task in done]
        for task in sorted(finished, key=lambda task: state.pendings[task][0]):
            _, group = state.pendings.pop(task)
            is_any_lost |= await self._settle(group, self._begun.pop(task), verdict_of(state, task))
        if is_any_lost and await state.client.wait_for_workers():
            self._dropped_in_a_row = 0

    async def _settle(self, group: Group, begun: Group, verdict: Verdict) -> bool:
        """Keep the group, drop it or begin it again; tell whether it was lost."""
        for sample in verdict.samples:
            for version in sample.weight_versions:
                self._history.note(version)
        if verdict.drop_reason == ABORTED:  # by a weight update, as a rule
            self._retries.append(group if self._args.partial_rollout else begun)
            self._count_drop(verdict)
            return True
        async with self._changed:
            if self._state.plugins.all_samples_process is not None and verdict.samples:
                self._news.decided.append(verdict.samples)
            if verdict.drop_reason is None:
                self._dropped_in_a_row = 0
                self._ready.append(_Ready(verdict.samples, begun))
                self._changed.notify_all()
                return False
            self._news.dropped.append(verdict)
        self._count_drop(verdict)
        return not verdict.by_filter

    def _count_drop(self, verdict: Verdict) -> None:
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= self._args.max_dropped_groups:
            raise RolloutError(
                f"the last {self._dropped_in_a_row} groups were all dropped, {verdict.drop_reason} at last"
                f"{f': {verdict.problem}' if verdict.problem else ''}. "
                "--max-dropped-groups sets how many are borne"
            )

    def _set_stale_aside(self) -> None:
        limit = self._args.max_weight_staleness
        fresh = []
        for ready in self._ready:
            if limit is None or self._history.age_of(ready.samples) <= limit:
                fresh.append(ready)
                continue
            self._news.stale += 1
            if self._args.stale_group_policy == "retry":
                self._retries.append(ready.begun)
        if len(fresh) < len(self._ready):
            self._ready = fresh
            self._has_room.set()
