"""Rewards that need no label: for trying things out, and for models that cannot answer anything."""

from ..config import RolloutConfig
from ..sample import Sample
from ..seeds import stable_seed
from .hub import rewards


@rewards.register("random")
async def random_reward(args: RolloutConfig, sample: Sample) -> float:
    """Return 0.0 or 1.0, evenly; the same for the same `rollout_seed` and sample index."""
    return float(stable_seed("random reward", args.rollout_seed, sample.index) & 1)


@rewards.register("digit_share")
async def digit_share(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001
    """Return the share of digits in the response's text, from 0.0 to 1.0; 0.0 for an empty one.

    It varies on random text, and so it exercises filters and metrics with a model that knows nothing.
    """
    text = sample.response
    return sum(character.isdigit() for character in text) / len(text) if text else 0.0
