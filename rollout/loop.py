"""The loop of a rollout: submit groups, keep the good ones, replace the others, stop what is left.

Source: the loop of slime's `generate_rollout`. Unlike there, a group that raises or holds a failed sample is
counted and dropped, a filter that drops everything ends in an error, a router without workers is waited
for instead of losing group after group to it, and nothing waits without a limit when the batch is complete.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Literal, overload

from ..errors import HttpError, RolloutError
from .batch import Batch, Verdict
from .config import RolloutConfig
from .data_source import DataSource
from .evaluation import eval_rollout
from .event_loop import run_async
from .filters import MetricGatherer
from .groups import generate_and_rm_group
from .leftovers import START_ROLLOUT_ID, check_takes_back, give_back, leftover_groups
from .metrics import FAILED_PREFIX, GROUPS_DROPPED, GROUPS_KEPT, Metrics
from .outputs import RolloutFnEvalOutput, RolloutFnTrainOutput
from .problems import reason_of
from .progress import RolloutObserver, current_observer
from .replies import TreeStats
from .sample import Sample
from .selection import chosen_groups, mark_and_show
from .state import RolloutState, rollout_state
from .stopping import abort
from .timeline import request_metrics
from .verdicts import ABORTED, verdict_of

_log = logging.getLogger(__name__)


@overload
def generate_rollout(
    args: RolloutConfig,
    rollout_id: int,
    data_source: DataSource,
    evaluation: Literal[False] = ...,
) -> RolloutFnTrainOutput: ...


@overload
def generate_rollout(
    args: RolloutConfig,
    rollout_id: int,
    data_source: DataSource,
    evaluation: bool,  # noqa: FBT001  slime's signature
) -> RolloutFnTrainOutput | RolloutFnEvalOutput: ...


def generate_rollout(
    args: RolloutConfig,
    rollout_id: int,
    data_source: DataSource,
    evaluation: bool = False,  # noqa: FBT001, FBT002  slime's signature
) -> RolloutFnTrainOutput | RolloutFnEvalOutput:
    """Run one rollout to its end, on an event loop of its own, and return its groups and metrics.

    What it leaves over goes back to the data source, as far as the settings say so. With `evaluation`, the
    evaluation sets are run instead and the data source is left alone.

    Raises: as `generate_rollout_async` or `eval_rollout`; ConfigError for a data source without the buffer
    that the settings need.
    """
    if evaluation:
        return run_async(eval_rollout(args, rollout_id))
    check_takes_back(args, data_source)
    output, leftover = run_async(generate_rollout_async(args, rollout_id, data_source.get_samples))
    give_back(data_source, leftover)
    return output


async def generate_rollout_async(
    args: RolloutConfig, rollout_id: int, data_source: Callable[[int], list[list[Sample]]]
) -> tuple[RolloutFnTrainOutput, list[list[Sample]]]:
    """Run one rollout; `data_source(n)` gives the next n groups.

    Returns the batch of `rollout_batch_size` groups, sorted by index, with its metrics, and the groups that
    the caller should give back to the data source: those that were cut off when the batch was complete, with
    `partial_rollout`, and complete ones beyond it, with `keep_surplus_groups`.

    Raises: RolloutError after `max_dropped_groups` dropped groups in a row; RouterUnavailable where there was
    no router or no worker for `router_patience_s`; ConfigError where a plug-in is at fault.
    """
    async with rollout_state(args) as state:
        state.aborted = False
        run = _Run(state)
        tree_before = await _tree_stats(state)
        began_s = time.monotonic()
        try:
            while not run.batch.is_complete:
                run.submit(data_source)
                await run.settle_next()
                _check_progress(run.batch, args.max_dropped_groups)
            full_s = time.monotonic() - began_s
        finally:
            cut_off = await abort(args, rollout_id)
            run.batch.close()
            timeline = state.requests.take()
            run.observer.on_timeline(timeline)
        groups = chosen_groups(args, state.plugins, run.batch.kept)
        leftover = leftover_groups(
            args, rollout_id, cut_off=[*run.interrupted, *cut_off], surplus=run.batch.surplus
        )
        metrics: Metrics = {
            **run.counts(),
            GROUPS_KEPT: float(len(groups)),
            "rollout/groups_cut_off": float(len(cut_off)),
            "rollout/groups_given_back": float(len(leftover)),
            "rollout/resumed_samples": float(_resumed(groups)),
            "rollout/tree_hit_rate": _hit_rate(tree_before, await _tree_stats(state)),
            **request_metrics(timeline),
            "perf/rollout_time": time.monotonic() - began_s,
            "perf/abort_time": time.monotonic() - began_s - full_s,
            "perf/tokens_per_sec": run.sampled_tokens / full_s if full_s > 0 else None,
        }
        mark_and_show(args, state.plugins, batch=groups, decided=run.decided, data_source=data_source)
    return RolloutFnTrainOutput(samples=groups, metrics=metrics), leftover


class _Run:
    """What one rollout has under way, and what came of it so far."""

    def __init__(self, state: RolloutState) -> None:
        args = state.args
        self.state = state
        self.batch = Batch(target=args.groups_to_complete, in_order=args.rollout_deterministic)
        self.interrupted: list[list[Sample]] = []
        """groups that somebody else aborted, as they were submitted"""
        self.sampled_tokens = 0
        self.observer: RolloutObserver = current_observer()
        self._gatherer = MetricGatherer()
        self._tokens_before: dict[int, int] = {}
        self._decided: list[tuple[int, list[Sample]]] = []

    @property
    def decided(self) -> list[list[Sample]]:
        """Every group that ended, whatever its verdict, in order of submission; kept for who asked for it."""
        return [samples for _, samples in sorted(self._decided, key=lambda entry: entry[0])]

    def counts(self) -> Metrics:
        """Return how many groups went which way."""
        batch = self.batch
        return {
            **self._gatherer.collect(),
            **{f"{FAILED_PREFIX}{reason}": float(count) for reason, count in batch.failed.items() if count},
            GROUPS_DROPPED: float(batch.dropped.total()),
            "rollout/groups_surplus": float(len(batch.surplus)),
        }

    def submit(self, data_source: Callable[[int], list[list[Sample]]]) -> None:
        """Begin groups until enough are under way to complete the batch."""
        state = self.state
        while self.batch.needs_submission:
            groups = data_source(state.args.groups_per_submission)
            if not groups:
                raise RolloutError("the data source has no more groups")
            for position, group in zip(self.batch.submit(len(groups)), groups, strict=True):
                self._tokens_before[position] = _trained_tokens(state.args, group)
                task = asyncio.create_task(generate_and_rm_group(state.args, group, state.sampling_params))
                state.pendings[task] = (position, group)

    async def settle_next(self) -> None:
        """Wait for a group or more, and decide on them.

        Where one was lost, and not to the filter, nothing is submitted in its place before there is a worker.
        """
        state, is_any_lost = self.state, False
        done, _ = await asyncio.wait(state.pendings, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=lambda task: state.pendings[task][0]):
            position, group = state.pendings.pop(task)
            verdict = verdict_of(state, task)
            self._count_tokens(position, verdict)
            if verdict.drop_reason == ABORTED:
                self.interrupted.append(group)
            if state.plugins.all_samples_process is not None and verdict.samples:
                self._decided.append((position, verdict.samples))
            is_any_lost |= verdict.drop_reason is not None and not verdict.by_filter
            for counted in self.batch.settle(position, verdict):
                self._tell(counted)
        if is_any_lost and not self.batch.is_complete and await state.client.wait_for_workers():
            self.batch.forgive()

    def _count_tokens(self, position: int, verdict: Verdict) -> None:
        before = self._tokens_before.pop(position)
        tokens = max(sum(sample.effective_response_length for sample in verdict.samples) - before, 0)
        self.sampled_tokens += tokens
        self.observer.on_tokens(tokens)

    def _tell(self, verdict: Verdict) -> None:
        if verdict.drop_reason is None:
            self.observer.on_group_kept(verdict.samples)
            return
        self.observer.on_group_dropped(verdict.samples, verdict.drop_reason, verdict.problem)
        if verdict.by_filter:
            self._gatherer.on_dynamic_filter_drop(verdict.drop_reason)


def _trained_tokens(args: RolloutConfig, group: list[Sample]) -> int:
    """Return how many tokens a group brings along that will count as trained on."""
    if args.mask_offpolicy_in_partial_rollout:
        return 0
    return sum(sample.effective_response_length for sample in group)


def _resumed(groups: list[list[Sample]]) -> int:
    return sum(START_ROLLOUT_ID in sample.metadata for group in groups for sample in group)


def _check_progress(batch: Batch, max_dropped_groups: int) -> None:
    if batch.is_complete or batch.dropped_in_a_row < max_dropped_groups:
        return
    counts = ", ".join(f"{count} {reason}" for reason, count in batch.reasons.most_common(5))
    because = f"; the last problem: {batch.last_problem}" if batch.last_problem else ""
    raise RolloutError(
        f"the last {batch.dropped_in_a_row} groups were all dropped ({counts}){because}. "
        "--max-dropped-groups sets how many are borne"
    )


async def _tree_stats(state: RolloutState) -> TreeStats | None:
    try:
        return await state.client.tree_stats()
    except (HttpError, RolloutError) as error:
        _log.warning("event=tree_stats_missing reason=%s", reason_of(error))
        return None


def _hit_rate(before: TreeStats | None, after: TreeStats | None) -> float | None:
    return after.hit_rate_since(before) if before is not None and after is not None else None
