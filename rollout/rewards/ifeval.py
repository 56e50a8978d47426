"""The `ifeval` reward: whether a response follows instructions that a program can check."""

from collections.abc import Mapping, Sequence
from typing import Final

from ...suggestion import suggestion
from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .hub import rewards
from .instructions import INSTRUCTIONS

IDS: Final = "instruction_id_list"
"""Where a sample's metadata has the ids of its instructions."""

ARGUMENTS: Final = "kwargs"
"""Where it has their arguments: an object for each, or one for all."""


@rewards.register("ifeval")
async def ifeval_reward(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001
    """Return 1.0 where the response, behind its thoughts, follows every instruction, else 0.0.

    The metadata names the instructions (`instruction_id_list`) and their arguments (`kwargs`).

    Raises: RewardFailed where it names none, an unknown one, or arguments that do not fit.
    Source: slime's `ifbench`, which asks for all of them, strictly; it pads arguments that are missing.
    """
    text = sample.response.rpartition("</think>")[2]
    ids = _ids(sample.metadata.get(IDS))
    arguments = _arguments(sample.metadata.get(ARGUMENTS), len(ids))
    # Each is checked, so that wrong arguments are told whatever the response is.
    followed = [_is_followed(name, text, own) for name, own in zip(ids, arguments, strict=True)]
    return float(all(followed))


def _ids(given: object) -> Sequence[str]:
    if not isinstance(given, list | tuple) or not given or not all(isinstance(item, str) for item in given):
        raise RewardFailed(
            f"the reward 'ifeval' needs {IDS!r} in the metadata, a list of names, not {given!r:.100}"
        )
    for name in given:
        if name not in INSTRUCTIONS:
            raise RewardFailed(
                f"the reward 'ifeval' knows no instruction {name!r}{suggestion(name, INSTRUCTIONS)}: "
                f"known are {', '.join(sorted(INSTRUCTIONS))}"
            )
    return given


def _arguments(given: object, count: int) -> Sequence[Mapping[str, object]]:
    """Return the arguments of each of `count` instructions."""
    listed: Sequence[object] = given if isinstance(given, list | tuple) else [given] * count
    found = [each for each in ({} if own is None else own for own in listed) if isinstance(each, Mapping)]
    if len(found) != count or len(listed) != count:
        raise RewardFailed(
            f"the reward 'ifeval' needs {ARGUMENTS!r} in the metadata, an object for each of the {count} "
            f"instructions, not {given!r:.100}"
        )
    return found


def _is_followed(instruction_id: str, text: str, arguments: Mapping[str, object]) -> bool:
    try:
        return INSTRUCTIONS[instruction_id].is_followed(text, arguments)
    except ValueError as error:
        raise RewardFailed(f"the reward 'ifeval' cannot check {instruction_id!r}: {error}") from None
