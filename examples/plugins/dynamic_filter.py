"""A dynamic filter, put together from those that are there and one of its own.

espalier rollout --dynamic-sampling-filter-path examples.plugins.dynamic_filter:worth_training …
"""

from typing import Any

from espalier.rollout import DynamicFilterOutput, RolloutConfig, Sample
from espalier.rollout.filters import all_of, check_reward_nonzero_std, truncated_share_within


def check_distinct(args: RolloutConfig, samples: list[Sample], **_: Any) -> DynamicFilterOutput:
    """Drop groups in which all samples say the same: nothing was explored."""
    if len({sample.response for sample in samples}) > 1:
        return DynamicFilterOutput(keep=True)
    return DynamicFilterOutput(keep=False, reason="all_the_same")


worth_training = all_of(check_distinct, truncated_share_within(0.5), check_reward_nonzero_std)
