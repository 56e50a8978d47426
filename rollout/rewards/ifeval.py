"""The rewards `ifeval` and `ifeval_loose`: whether a response follows instructions that can be checked.

Metadata: `instruction_id_list`, ids of IFEval's, and `kwargs`, an object of options for each.
"""

from collections.abc import Callable, Sequence

from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .hub import rewards
from .instructions import CHECKS, Check, OptionProblem, Options, follows_all, follows_each_loosely


@rewards.register("ifeval")
def ifeval_reward(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001  a reward's signature
    """Return 1.0 where the response follows all its instructions to the letter, else 0.0.

    Raises: RewardFailed naming what is wrong with the metadata, or the instruction that is not known.
    """
    return _graded(follows_all, sample)


@rewards.register("ifeval_loose")
def ifeval_loose_reward(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001
    """Do as `ifeval`, with first and last lines and emphasis left out where that helps."""
    return _graded(follows_each_loosely, sample)


def _graded(follows: Callable[[str, Sequence[tuple[Check, Options]]], bool], sample: Sample) -> float:
    try:
        return float(follows(sample.response, _instructions(sample)))
    except OptionProblem as error:
        raise RewardFailed(f"the reward 'ifeval': {error}") from None


def _instructions(sample: Sample) -> list[tuple[Check, Options]]:
    ids, options = sample.metadata.get("instruction_id_list"), sample.metadata.get("kwargs")
    if not isinstance(ids, list) or not ids or not all(isinstance(each, str) for each in ids):
        raise RewardFailed("the reward 'ifeval' needs 'instruction_id_list' in the metadata, a list of ids")
    given = options if options is not None else [{}] * len(ids)
    if not isinstance(given, list) or len(given) != len(ids):
        raise RewardFailed(f"the reward 'ifeval' needs 'kwargs' in the metadata, {len(ids)} objects")
    unknown = next((each for each in ids if each not in CHECKS), None)
    if unknown is not None:
        raise RewardFailed(
            f"the reward 'ifeval' knows no instruction {unknown!r}: known are {', '.join(sorted(CHECKS))}"
        )
    return [
        (CHECKS[name], Options(name, each if isinstance(each, dict) else {}))
        for name, each in zip(ids, given, strict=True)
    ]
