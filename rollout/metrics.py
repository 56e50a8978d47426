"""A step's metrics, from its samples. Names are slime's where slime has one."""

import math
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


_LENGTH_PREFIX: Final = "rollout/response_len/"


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


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that at least one of `k` samples is correct, drawn from `n` of which `c` are.

    This is the unbiased estimate of pass@k; the share of correct samples, raised to a power, is not.

    Raises: ValueError where `c` or `k` are not possible for `n`.

    Source: Chen et al., Evaluating Large Language Models Trained on Code, 2021, equation 1.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@{k} needs at least {k} samples, and at most as many correct ones: {c} of {n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def eval_metrics(
    args: RewardKey, name: str, groups: Sequence[Sequence[Sample]], *, missing: int = 0
) -> Metrics:
    """Return the metrics of the evaluation set `name`; every sample in `groups` has a reward.

    `eval/{name}` is the mean reward. pass@k, for powers of two, is a mean over the groups that have k
    samples; a sample is correct where its reward is 1. `missing` samples could not be had.
    """
    samples = [sample for group in groups for sample in group]
    rewards = [sample.get_reward_value(args) for sample in samples]
    metrics: Metrics = {f"eval/{name}": statistics.fmean(rewards) if rewards else None}
    for key, value in sample_metrics(args, groups).items():
        if key.startswith(_LENGTH_PREFIX):
            metrics[f"eval/{name}/{key.removeprefix('rollout/')}"] = value
    truncated = sum(sample.status is Status.TRUNCATED for sample in samples)
    metrics[f"eval/{name}-truncated_ratio"] = truncated / len(samples) if samples else None
    metrics[f"eval/{name}/missing_samples"] = float(missing)
    counts = [(len(group), sum(sample.get_reward_value(args) == 1 for sample in group)) for group in groups]
    k = 1
    while k <= max((n for n, _ in counts), default=0):
        metrics[f"eval/{name}-pass@{k}"] = statistics.fmean(pass_at_k(n, c, k) for n, c in counts if n >= k)
        k *= 2
    return metrics


def drops_by_reason(metrics: Metrics) -> dict[str, int]:
    """Return how many groups were dropped for each reason, sorted by reason."""
    found = {
        name.removeprefix(prefix): int(value)
        for prefix in (DROP_PREFIX, FAILED_PREFIX)
        for name, value in metrics.items()
        if name.startswith(prefix) and value
    }
    return dict(sorted(found.items()))
