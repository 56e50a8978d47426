"""Filters: which groups are worth training on.

A dynamic filter is `f(args, samples, **kwargs) -> DynamicFilterOutput | bool`. What it rejects is dropped,
counted by reason under `rollout/dynamic_filter/drop_{reason}`, and replaced. One that raises drops the group
as `filter_raised`; one that returns neither, such as None, ends the rollout with an error that names it.
"""

from ..outputs import DynamicFilterOutput
from .checks import (
    check_no_aborted,
    check_no_truncated,
    mean_reward_within,
    response_length_within,
    truncated_share_within,
)
from .composition import all_of, any_of, none_of
from .hub import (
    DynamicFilter,
    MetricGatherer,
    OverSamplingFilter,
    call_dynamic_filter,
    dynamic_filters,
    flattened,
    over_sampling_filters,
)
from .spread import MIN_REWARD_STD, check_reward_nonzero_std, float32, reward_std, sort_by_reward_std

__all__ = [
    "MIN_REWARD_STD",
    "DynamicFilter",
    "DynamicFilterOutput",
    "MetricGatherer",
    "OverSamplingFilter",
    "all_of",
    "any_of",
    "call_dynamic_filter",
    "check_no_aborted",
    "check_no_truncated",
    "check_reward_nonzero_std",
    "dynamic_filters",
    "flattened",
    "float32",
    "mean_reward_within",
    "none_of",
    "over_sampling_filters",
    "response_length_within",
    "reward_std",
    "sort_by_reward_std",
    "truncated_share_within",
]
