"""A step's metrics, from its samples. Names are slime's where slime has one."""

import statistics
from collections.abc import Sequence
from typing import Final, TypeAlias

from .sample import RewardKey, Sample, Status

Metrics: TypeAlias = dict[str, float | None]
"""Metric name -> value; None where there is nothing to measure, never a stand-in number."""

GROUPS_KEPT: Final = "rollout/groups_kept"
"""Groups in the batch."""

GROUPS_DROPPED: Final = "rollout/groups_dropped"
"""Groups decided against, for whatever reason."""

DROP_PREFIX: Final = "rollout/dynamic_filter/drop_"
"""Groups that the dynamic filter dropped, by reason."""

FAILED_PREFIX: Final = "rollout/failed_group/"
"""Groups that were dropped because their samples could not be had, by reason."""


def sample_metrics(args: RewardKey, groups: Sequence[Sequence[Sample]]) -> Metrics:
    """Return lengths, truncation and reward of a batch.

    Lengths are in tokens that are trained on. Rewards are a sample's mean; samples without one are left out.
    """
    samples = [sample for group in groups for sample in group]
    lengths = [sample.effective_response_length for sample in samples]
    rewards = [sample.get_reward_value(args) for sample in samples if sample.reward is not None]
    truncated = sum(sample.status is Status.TRUNCATED for sample in samples)
    return {
        "rollout/reward/mean": statistics.fmean(rewards) if rewards else None,
        "rollout/response_len/mean": statistics.fmean(lengths) if lengths else None,
        "rollout/response_len/median": float(statistics.median(lengths)) if lengths else None,
        "rollout/response_len/max": float(max(lengths)) if lengths else None,
        "rollout/response_len/min": float(min(lengths)) if lengths else None,
        "rollout/truncated_ratio": truncated / len(samples) if samples else None,
    }


def drops_by_reason(metrics: Metrics) -> dict[str, int]:
    """Return how many groups were dropped for each reason, sorted by reason."""
    found = {
        name.removeprefix(prefix): int(value)
        for prefix in (DROP_PREFIX, FAILED_PREFIX)
        for name, value in metrics.items()
        if name.startswith(prefix) and value
    }
    return dict(sorted(found.items()))
