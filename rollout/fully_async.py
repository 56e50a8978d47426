"""The fully async rollout: generation goes on between rollouts, while the trainer trains.

A thread with an event loop of its own generates (`Producer`); a rollout takes the oldest groups that wait, as
many as a batch has.

Source: slime's `fully_async_rollout`.
"""

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from ..errors import ConfigError
from .config import RolloutConfig
from .data_source import DataSource
from .event_loop import collecting_rarely
from .leftovers import check_takes_back, give_back
from .loop import generate_rollout
from .metrics import DROP_PREFIX, FAILED_PREFIX, GROUPS_DROPPED, GROUPS_KEPT, Metrics
from .outputs import RolloutFnEvalOutput, RolloutFnTrainOutput
from .plugins import rollout_functions
from .producer import Group, Producer, Taken
from .progress import current_observer
from .selection import mark_and_show
from .state import rollout_state
from .timeline import request_metrics

POLL_S: Final = 0.2
"""Time between looks at a thread that waits for the producer, so that Ctrl-C gets through."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


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
        started: concurrent.futures.Future[Producer] = concurrent.futures.Future()
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

    def take(self, count: int, rollout_id: int) -> Taken:
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

    def _run(self, started: "concurrent.futures.Future[Producer]") -> None:
        with collecting_rarely(), asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                self._leftover = runner.run(self._main(started))
            except Exception as error:  # noqa: BLE001  it is raised where the thread was begun
                if started.done():
                    _log.exception("event=producer_failed")
                else:
                    started.set_exception(error)

    async def _main(self, started: "concurrent.futures.Future[Producer]") -> list[Group]:
        async with rollout_state(self._args) as state:
            producer = Producer(self._args, self._data_source, state)
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


def _tell(taken: Taken) -> None:
    observer = current_observer()
    observer.on_timeline(taken.timeline)
    for group in taken.groups:
        observer.on_group_kept(group)
        observer.on_tokens(sum(sample.effective_response_length for sample in group))
    for verdict in taken.dropped:
        observer.on_group_dropped(verdict.samples, verdict.drop_reason or "", verdict.problem)


def _metrics(taken: Taken, waited_s: float) -> Metrics:
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
