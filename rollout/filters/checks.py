"""Filters that go by the state, the length or the reward of a group's samples.

Those with bounds are made by a call: `too_easy = mean_reward_within(0.0, 0.9)` in a module of your own, and
`--dynamic-sampling-filter-path my_module:too_easy`.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from ..config import RolloutConfig
from ..outputs import DynamicFilterOutput
from ..sample import Sample, Status
from .hub import DynamicFilter, dynamic_filters, flattened

_KEEP = DynamicFilterOutput(keep=True)


def check_no_aborted(
    args: RolloutConfig,  # noqa: ARG001
    samples: Sequence[Sample | list[Sample]],
    **_: Any,
) -> DynamicFilterOutput:
    """Drop groups with an aborted sample, as `group_has_aborted`."""
    if any(sample.status is Status.ABORTED for sample in flattened(samples)):
        return DynamicFilterOutput(keep=False, reason="group_has_aborted")
    return _KEEP


dynamic_filters.register("check_no_aborted")(check_no_aborted)


def check_no_truncated(
    args: RolloutConfig,  # noqa: ARG001
    samples: Sequence[Sample | list[Sample]],
    **_: Any,
) -> DynamicFilterOutput:
    """Drop groups with a truncated sample, as `truncated`."""
    if any(sample.status is Status.TRUNCATED for sample in flattened(samples)):
        return DynamicFilterOutput(keep=False, reason="truncated")
    return _KEEP


dynamic_filters.register("check_no_truncated")(check_no_truncated)


def truncated_share_within(max_share: float) -> DynamicFilter:
    """Return a filter that drops groups in which more than `max_share` of the samples are truncated.

    Raises: ConfigError where `max_share` is not from 0 to 1.
    """
    if not 0 <= max_share <= 1:
        raise ConfigError(f"max_share must be from 0 to 1, not {max_share}")

    def check_truncated_share(
        args: RolloutConfig,  # noqa: ARG001
        samples: Sequence[Sample | list[Sample]],
        **_: Any,
    ) -> DynamicFilterOutput:
        group = flattened(samples)
        truncated = sum(sample.status is Status.TRUNCATED for sample in group)
        if truncated > max_share * len(group):
            return DynamicFilterOutput(keep=False, reason="truncated")
        return _KEEP

    return check_truncated_share


def response_length_within(min_tokens: int = 0, max_tokens: int | None = None) -> DynamicFilter:
    """Return a filter that drops groups with a response that is `too_short` or `too_long`.

    Lengths are in tokens that are trained on; both bounds are allowed lengths.

    Raises: ConfigError where no length is allowed.
    """
    if min_tokens < 0 or (max_tokens is not None and max_tokens < min_tokens):
        raise ConfigError(f"no response has from {min_tokens} to {max_tokens} tokens")

    def check_response_length(
        args: RolloutConfig,  # noqa: ARG001
        samples: Sequence[Sample | list[Sample]],
        **_: Any,
    ) -> DynamicFilterOutput:
        lengths = [sample.effective_response_length for sample in flattened(samples)]
        if min(lengths, default=min_tokens) < min_tokens:
            return DynamicFilterOutput(keep=False, reason="too_short")
        if max_tokens is not None and max(lengths, default=0) > max_tokens:
            return DynamicFilterOutput(keep=False, reason="too_long")
        return _KEEP

    return check_response_length


def mean_reward_within(low: float, high: float) -> DynamicFilter:
    """Return a filter that drops groups whose mean reward is below `low` or above `high`.

    The reasons are `reward_too_low` and `reward_too_high`; both bounds are allowed rewards.

    Raises: ConfigError where no reward is allowed.
    """
    if math.isnan(low) or math.isnan(high) or low > high:
        raise ConfigError(f"no reward is from {low} to {high}")

    def check_mean_reward(
        args: RolloutConfig, samples: Sequence[Sample | list[Sample]], **_: Any
    ) -> DynamicFilterOutput:
        mean = statistics.fmean(sample.get_reward_value(args) for sample in flattened(samples))
        if low <= mean <= high:
            return _KEEP
        return DynamicFilterOutput(keep=False, reason="reward_too_low" if mean < low else "reward_too_high")

    return check_mean_reward
