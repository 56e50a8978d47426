"""The loop of a rollout: submit groups, keep the good ones, replace the others, stop what is left.

Source: the loop of slime's `generate_rollout`. Unlike there, a group that raises or holds a failed sample is
counted and dropped, a filter that drops everything ends in an error, a router without workers is waited
for instead of losing group after group to it, and nothing waits without a limit when the batch is complete.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from ..errors import ConfigError, HttpError, RolloutError
from .batch import Batch, Verdict
from .config import RolloutConfig
from .data_source import DataSource
from .filters import MetricGatherer, call_dynamic_filter, flattened
from .generate import generate_and_rm_group
from .metrics import FAILED_PREFIX, GROUPS_DROPPED, GROUPS_KEPT, Metrics
from .outputs import RolloutFnTrainOutput
from .problems import RouterUnavailable, code_of, reason_of
from .progress import RolloutObserver, current_observer
from .replies import TreeStats
from .sample import Sample, Status
from .state import GroupTask, RolloutState, rollout_state
from .stopping import abort

_UNUSABLE: Final = {Status.FAILED: "failed", Status.ABORTED: "aborted", Status.PENDING: "unfinished"}
"""Why a group with such a sample is dropped: it has no reward to compare. A failed one may know better."""

_log = logging.getLogger(__name__)


def generate_rollout(
    args: RolloutConfig,
    rollout_id: int,
    data_source: DataSource,
    evaluation: bool = False,  # noqa: FBT001, FBT002  slime's signature
) -> RolloutFnTrainOutput:
    """Run one rollout to its end, on an event loop of its own, and return its groups and metrics.

    Raises: as `generate_rollout_async`; ConfigError for `evaluation`, which needs evaluation sets.
    """
    if evaluation:
        raise ConfigError("this rollout function has no evaluation sets: call it with evaluation=False")
    output, _ = asyncio.run(generate_rollout_async(args, rollout_id, data_source.get_samples))
    return output


async def generate_rollout_async(
    args: RolloutConfig, rollout_id: int, data_source: Callable[[int], list[list[Sample]]]
) -> tuple[RolloutFnTrainOutput, list[list[Sample]]]:
    """Run one rollout; `data_source(n)` gives the next n groups.

    Returns the batch of `rollout_batch_size` groups, sorted by index, with its metrics, and the groups that
    were cut off when it was complete.

    Raises: RolloutError after `max_dropped_groups` dropped groups in a row; RouterUnavailable where there was
    no router or no worker for `router_patience_s`; ConfigError where a plug-in is at fault.
    """
    async with rollout_state(args) as state:
        state.aborted = False
        observer = current_observer()
        batch = Batch(target=args.rollout_batch_size, in_order=args.rollout_deterministic)
        gatherer = MetricGatherer()
        tree_before = await _tree_stats(state)
        began_s = time.monotonic()
        sampled_tokens = 0
        cut_off: list[list[Sample]] = []
        try:
            while not batch.is_complete:
                _submit(state, batch, data_source)
                sampled_tokens += await _settle_next(state, batch, gatherer, observer)
                _check_progress(batch, args.max_dropped_groups)
            full_s = time.monotonic() - began_s
        finally:
            cut_off = await abort(args, rollout_id)
            batch.close()
        metrics: Metrics = {
            **gatherer.collect(),
            **{f"{FAILED_PREFIX}{reason}": float(count) for reason, count in batch.failed.items() if count},
            GROUPS_KEPT: float(len(batch.kept)),
            GROUPS_DROPPED: float(batch.dropped.total()),
            "rollout/groups_surplus": float(batch.surplus),
            "rollout/groups_cut_off": float(len(cut_off)),
            "rollout/tree_hit_rate": _hit_rate(tree_before, await _tree_stats(state)),
            "perf/rollout_time": time.monotonic() - began_s,
            "perf/abort_time": time.monotonic() - began_s - full_s,
            "perf/tokens_per_sec": sampled_tokens / full_s if full_s > 0 else None,
        }
    groups = sorted(batch.kept, key=lambda group: group[0].index or 0)
    return RolloutFnTrainOutput(samples=groups, metrics=metrics), cut_off


def _submit(state: RolloutState, batch: Batch, data_source: Callable[[int], list[list[Sample]]]) -> None:
    while batch.needs_submission:
        groups = data_source(state.args.groups_per_submission)
        if not groups:
            raise RolloutError("the data source has no more groups")
        for position, group in zip(batch.submit(len(groups)), groups, strict=True):
            task = asyncio.create_task(generate_and_rm_group(state.args, group, state.sampling_params))
            state.pendings[task] = (position, group)


async def _settle_next(
    state: RolloutState, batch: Batch, gatherer: MetricGatherer, observer: RolloutObserver
) -> int:
    """Wait for a group or more, and decide on them; return how many tokens were sampled for them.

    Where one was lost, and not to the filter, nothing is submitted in its place before there is a worker.
    """
    sampled_tokens = 0
    is_any_lost = False
    done, _ = await asyncio.wait(state.pendings, return_when=asyncio.FIRST_COMPLETED)
    for task in sorted(done, key=lambda task: state.pendings[task][0]):
        position, _ = state.pendings.pop(task)
        verdict = _verdict(state, task)
        tokens = sum(sample.effective_response_length for sample in verdict.samples)
        sampled_tokens += tokens
        observer.on_tokens(tokens)
        is_any_lost |= verdict.drop_reason is not None and not verdict.by_filter
        for counted in batch.settle(position, verdict):
            if counted.drop_reason is None:
                observer.on_group_kept(counted.samples)
                continue
            observer.on_group_dropped(counted.samples, counted.drop_reason, counted.problem)
            if counted.by_filter:
                gatherer.on_dynamic_filter_drop(counted.drop_reason)
    if is_any_lost and not batch.is_complete and await state.client.wait_for_workers():
        batch.forgive()
    return sampled_tokens


def _verdict(state: RolloutState, task: GroupTask) -> Verdict:
    try:
        samples = flattened(task.result())
    except (ConfigError, RouterUnavailable):
        raise
    except Exception as error:  # noqa: BLE001  one group's trouble is not the rollout's
        return Verdict([], code_of(error), problem=reason_of(error))
    for status, reason in _UNUSABLE.items():
        found = next((sample for sample in samples if sample.status is status), None)
        if found is not None:
            return Verdict(
                samples,
                str(found.metadata.get("error_code", reason)) if status is Status.FAILED else reason,
                problem=found.metadata.get("error"),
            )
    try:
        output = call_dynamic_filter(state.plugins.dynamic_filter, state.args, samples)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  a plug-in's; it becomes the group's
        return Verdict(samples, "filter_raised", problem=reason_of(error))
    if output.keep:
        return Verdict(samples)
    return Verdict(samples, output.reason or "unspecified", by_filter=True)


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
