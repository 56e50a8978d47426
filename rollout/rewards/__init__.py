"""Rewards: what a response is worth.

A reward is `async f(args, sample) -> float | dict`, found by name, `package.module:function` or
`package.module.function`. For a sample the first of these counts: its own `custom_rm_path`, the settings'
`custom_rm_path`, `rm_type` in its metadata, the settings' `rm_type`.
"""

from .hub import GroupReward, Reward, RewardValue, async_rm, batched_async_rm, group_rewards, rewards
from .math import math_reward
from .simple import digit_share, random_reward

__all__ = [
    "GroupReward",
    "Reward",
    "RewardValue",
    "async_rm",
    "batched_async_rm",
    "digit_share",
    "group_rewards",
    "math_reward",
    "random_reward",
    "rewards",
]
