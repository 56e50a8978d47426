"""Rewards: what a response is worth.

A reward is `async f(args, sample) -> float | dict`, found by name, `package.module:function` or
`package.module.function`. For a sample the first of these counts: its own `custom_rm_path`, the settings'
`custom_rm_path`, `rm_type` in its metadata, the settings' `rm_type`.
"""

from .hub import (
    GroupReward,
    LabelCheck,
    Reward,
    RewardValue,
    async_rm,
    batched_async_rm,
    checks_labels,
    chosen_reward,
    group_rewards,
    label_check_of,
    rewards,
)
from .math import math_reward
from .simple import digit_share, random_reward

__all__ = [
    "GroupReward",
    "LabelCheck",
    "Reward",
    "RewardValue",
    "async_rm",
    "batched_async_rm",
    "checks_labels",
    "chosen_reward",
    "digit_share",
    "group_rewards",
    "label_check_of",
    "math_reward",
    "random_reward",
    "rewards",
]
