"""A reward: the right answer counts, and less so the longer it took.

espalier rollout --custom-rm-path examples.plugins.reward:right_and_short …
"""

from espalier.rollout import RolloutConfig, Sample
from espalier.rollout.rewards import math_reward

MOST_LOST = 0.5
"""What a right answer that fills the length limit loses of its reward."""


async def right_and_short(args: RolloutConfig, sample: Sample) -> float:
    """Return 0.0 for a wrong answer, and from 0.5 to 1.0 for a right one."""
    share = min(sample.response_length / args.rollout_max_response_len, 1.0)
    return await math_reward(args, sample) * (1.0 - MOST_LOST * share)
