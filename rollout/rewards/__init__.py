"""Rewards: what a response is worth.

A reward is `async f(args, sample) -> float | dict`, found by name, `package.module:function` or
`package.module.function`. For a sample the first of these counts: its own `custom_rm_path`, the settings'
`custom_rm_path`, `rm_type` in its metadata, the settings' `rm_type`. `boxed_` before a registered name grades
what is in the last box alone. A reward that raises, takes too long or is no finite number fails its sample.
"""

from .code import code_reward
from .dapo import dapo_reward
from .distillation import on_policy_distillation
from .f1 import f1_reward
from .gpqa import gpqa_reward
from .grader import grader_session
from .hub import (
    GroupReward,
    LabelCheck,
    Reward,
    RewardValue,
    async_rm,
    batched_async_rm,
    boxed,
    checks_labels,
    chosen_reward,
    group_rewards,
    keeps_time,
    label_check_of,
    rewards,
    takes_answer_as,
)
from .ifeval import ifeval_reward
from .math import deepscaler_reward, math_reward
from .remote import remote_reward
from .simple import digit_share, random_reward

__all__ = [
    "GroupReward",
    "LabelCheck",
    "Reward",
    "RewardValue",
    "async_rm",
    "batched_async_rm",
    "boxed",
    "checks_labels",
    "chosen_reward",
    "code_reward",
    "dapo_reward",
    "deepscaler_reward",
    "digit_share",
    "f1_reward",
    "gpqa_reward",
    "grader_session",
    "group_rewards",
    "ifeval_reward",
    "keeps_time",
    "label_check_of",
    "math_reward",
    "on_policy_distillation",
    "random_reward",
    "remote_reward",
    "rewards",
    "takes_answer_as",
]
