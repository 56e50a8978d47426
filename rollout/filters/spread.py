"""Filters that go by how far the rewards of a group lie apart: without a spread there is nothing to learn."""

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

from ..config import RolloutConfig
from ..outputs import DynamicFilterOutput
from ..sample import RewardKey, Sample
from .hub import dynamic_filters, flattened, over_sampling_filters

MIN_REWARD_STD: Final = 1e-6
"""Rewards that spread less are equal: their advantages would be noise divided by noise."""


def reward_std(args: RewardKey, samples: Sequence[Sample | list[Sample]]) -> float | None:
    """Return the standard deviation (unbiased) of a group's rewards, as float32; None for one sample.

    That is `torch.tensor(rewards).std()` without torch and its rounding, which finds a spread of 0.04 in
    three rewards of 349526.1875: the rewards are rounded to float32 but summed exactly, torch or not.

    Raises: ValueError where a sample has no reward; OverflowError where one is beyond float32.
    """
    rewards = [float32(sample.get_reward_value(args)) for sample in flattened(samples)]
    if len(rewards) < 2:
        return None
    mean = math.fsum(rewards) / len(rewards)
    return float32(math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1)))


def check_reward_nonzero_std(
    args: RolloutConfig, samples: Sequence[Sample | list[Sample]], **_: Any
) -> DynamicFilterOutput:
    """Keep groups whose rewards differ: in the others no sample is better than its siblings.

    A group that a generate function fanned out is flattened. A single sample has no spread to measure: it
    is dropped with a reason of its own, so that the error which ends the rollout can tell.

    Source: slime's filter of this name, with its threshold and reasons.
    """
    std = reward_std(args, samples)
    if std is None:
        return DynamicFilterOutput(keep=False, reason="single_sample")
    if std > MIN_REWARD_STD:
        return DynamicFilterOutput(keep=True)
    first = float32(flattened(samples)[0].get_reward_value(args))
    return DynamicFilterOutput(keep=False, reason=f"zero_std_{round(first, 1)}")


dynamic_filters.register("check_reward_nonzero_std")(check_reward_nonzero_std)


@over_sampling_filters.register("sort_by_reward_std")
def sort_by_reward_std(args: RolloutConfig, groups: list[list[Sample]], **_: Any) -> list[list[Sample]]:
    """Return the groups, those whose rewards differ most first; equal ones stay in their order.

    Groups of a single sample have no spread and come last.

    Source: slime's over-sampling filter of this name.
    """
    return sorted(groups, key=lambda group: -(reward_std(args, group) or 0.0))


def float32(number: float) -> float:
    """Return `number` rounded to single precision, as a training tensor would hold it.

    Raises: OverflowError where it is beyond the range.
    """
    return float(struct.unpack("<f", struct.pack("<f", number))[0])
