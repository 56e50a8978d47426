"""The fully async rollout: generation goes on between rollouts, while the trainer trains.

Invariant: groups under way and groups that wait to be taken are at most `fully_async_max_groups` together.
A trainer that is slow therefore stops generation; it never fills the memory.

A thread with an event loop of its own generates (`_Producer`); a rollout takes the oldest groups that wait,
as many as a batch has. Groups sampled from weights that are more than `max_weight_staleness` updates old are
thrown away or generated again when they would be taken.

Source: slime's `fully_async_rollout`, whose output queue has no bound, and the staleness limit of miles.
"""

import asyncio
import concurrent.futures
import contextlib
import copy
import logging
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from ..errors import ConfigError, HttpError, RolloutError
from .batch import Verdict
from .config import RolloutConfig
from .data_source import DataSource
from .generate import generate_and_rm_group
from .leftovers import check_takes_back, give_back, leftover_groups
from .loop import generate_rollout
from .metrics import DROP_PREFIX, FAILED_PREFIX, GROUPS_DROPPED, GROUPS_KEPT, Metrics
from .outputs import RolloutFnEvalOutput, RolloutFnTrainOutput
from .plugins import rollout_functions
from .progress import current_observer
from .sample import Sample
from .selection import mark_and_show
from .staleness import WeightHistory
from .state import GroupTask, RolloutState, rollout_state
from .stopping import abort
from .timeline import Timeline, request_metrics
from .verdicts import ABORTED, verdict_of

POLL_S: Final = 0.2
"""Time between looks at a thread that waits for the producer, so that Ctrl-C gets through."""

_T = TypeVar("_T")
Group = list[Sample]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A group that waits to be taken."""

    samples: Group
    begun: Group
    """the same before anything was sampled for it, in case it gets too old"""


@dataclass(slots=True, kw_only=True)
class _Taken:
    """What happened since the last rollout."""

    groups: list[Group] = field(default_factory=list)
    decided: list[Group] = field(default_factory=list)
    dropped: list[Verdict] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    stale: int = 0
    waiting: int = 0
    timeline: Timeline = field(default_factory=lambda: Timeline(requests=[]))


class _Producer:
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
        self._news = _Taken()
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

    async def take(self, count: int, rollout_id: int) -> _Taken:
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
            taken, self._news = self._news, _Taken()
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


class FullyAsyncRollout:
    """The rollout function `fully_async`. The first call begins to generate; `close` ends it.

    One producer at a time: a call with other settings, or another data source, ends the one before. The data
    source is then used by the producer's thread alone.
    """

    def __init__(self) -> None:
        self._thread: _ProducerThread | None = None

    def __call__(
        self,
        args: RolloutConfig,
        rollout_id: int,
        data_source: DataSource,
        evaluation: bool = False,  # noqa: FBT001, FBT002  slime's signature
    ) -> RolloutFnTrainOutput | RolloutFnEvalOutput:
        """Return the next batch, sorted by index; with `evaluation`, evaluate beside the generation.

        Raises: RolloutError after `max_dropped_groups` dropped groups in a row; RouterUnavailable,
        ConfigError as the plain rollout does.
        """
        if evaluation:
            return generate_rollout(args, rollout_id, data_source, evaluation=True)
        if self._thread is None or not self._thread.serves(args, data_source):
            self.close()
            self._thread = _ProducerThread(args, data_source)
        began_s = time.monotonic()
        try:
            taken = self._thread.take(args.rollout_batch_size, rollout_id)
        except BaseException:
            self.close()
            raise
        groups = sorted(taken.groups, key=lambda group: group[0].index or 0)
        _tell(taken)
        mark_and_show(
            args,
            self._thread.plugins,
            batch=groups,
            decided=taken.decided,
            data_source=data_source.get_samples,
        )
        return RolloutFnTrainOutput(groups, _metrics(taken, time.monotonic() - began_s))

    def close(self) -> None:
        """End the generation; what the settings say is given back to the data source. Can be repeated."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()


class _ProducerThread:
    """Runs a producer, and passes calls to it from other threads."""

    def __init__(self, args: RolloutConfig, data_source: DataSource) -> None:
        _check(args, data_source)
        self._args = args
        self._data_source = data_source
        self._loop = asyncio.new_event_loop()
        started: concurrent.futures.Future[_Producer] = concurrent.futures.Future()
        self._closing = asyncio.Event()
        self._leftover: list[Group] = []
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="espalier-fully-async", daemon=True
        )
        self._thread.start()
        self._producer = started.result()

    def serves(self, args: RolloutConfig, data_source: DataSource) -> bool:
        """Tell whether the producer works with these, and lives."""
        return args == self._args and data_source is self._data_source and self._thread.is_alive()

    def take(self, count: int, rollout_id: int) -> _Taken:
        """Wait for a batch."""
        return self._call(self._producer.take(count, rollout_id))

    def close(self) -> None:
        """End the producer and its thread, and give back what it has."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        give_back(self._data_source, self._leftover)

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while not future.done():
                concurrent.futures.wait([future], timeout=POLL_S)
        except BaseException:
            future.cancel()
            raise
        return future.result()

    def _run(self, started: "concurrent.futures.Future[_Producer]") -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                self._leftover = runner.run(self._main(started))
            except Exception as error:  # noqa: BLE001  it is raised where the thread was begun
                if started.done():
                    _log.exception("event=producer_failed")
                else:
                    started.set_exception(error)

    async def _main(self, started: "concurrent.futures.Future[_Producer]") -> list[Group]:
        async with rollout_state(self._args) as state:
            producer = _Producer(self._args, self._data_source, state)
            self.plugins = state.plugins
            running = asyncio.create_task(producer.run())
            started.set_result(producer)
            await self._closing.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return await producer.close()


def _check(args: RolloutConfig, data_source: DataSource) -> None:
    check_takes_back(args, data_source)
    for name in ("rollout_deterministic", "over_sampling_filter_path"):
        if getattr(args, name):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for rollouts that begin and end: fully_async has none")


def _tell(taken: _Taken) -> None:
    observer = current_observer()
    observer.on_timeline(taken.timeline)
    for group in taken.groups:
        observer.on_group_kept(group)
        observer.on_tokens(sum(sample.effective_response_length for sample in group))
    for verdict in taken.dropped:
        observer.on_group_dropped(verdict.samples, verdict.drop_reason or "", verdict.problem)


def _metrics(taken: _Taken, waited_s: float) -> Metrics:
    reasons = Counter(
        f"{DROP_PREFIX if verdict.by_filter else FAILED_PREFIX}{verdict.drop_reason}"
        for verdict in taken.dropped
    )
    return {
        **{name: float(count) for name, count in sorted(reasons.items())},
        GROUPS_KEPT: float(len(taken.groups)),
        GROUPS_DROPPED: float(len(taken.dropped)),
        "rollout/groups_stale": float(taken.stale),
        "rollout/groups_waiting": float(taken.waiting),
        "rollout/staleness/mean": sum(taken.ages) / len(taken.ages),
        "rollout/staleness/max": float(max(taken.ages)),
        **request_metrics(taken.timeline),
        "perf/rollout_time": waited_s,
    }


fully_async = FullyAsyncRollout()
rollout_functions.register("fully_async")(fully_async)
