"""The `gpqa` reward: grades the choice of a multiple-choice question."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .boxed import last_boxed
from .hub import rewards, takes_answer_as

DEFAULT_LETTERS: Final = "ABCDEFGHIJ"
"""Letters of the choices where the metadata names neither letters nor choices."""

_WRAPPED: Final = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\{([^{}]*)\}")
_STATED: Final = re.compile(
    r"(?i:\b(?:answer|option|choice)\b(?:\s+(?:is|would be|must be))?\s*:?\s*(?:option\s+|choice\s+)?)"
    r"[(\[*$\s]*(?P<letter>[A-Zb-hj-z])(?![\w'])"
)
_ALONE: Final = re.compile(r"(?<![\w'\\])(?P<letter>[AI](?!\s+[a-z])|[B-HJ-Z])(?![\w'])")
"""A capital; but the article and the pronoun, which go before another word, are no choice."""


@takes_answer_as(r"\boxed{{{}}}")
async def gpqa_reward(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001
    r"""Return 1.0 where the response chooses the right letter, else 0.0.

    The right one is `correct_letter` of the metadata, or else the label: a letter, the index of one (0 is
    A), or the text of a choice. The metadata may name `choices` (a list, or an object by letter) and
    `valid_letters`. A response chooses by the last `\\boxed{B}` or "answer is B" behind its thoughts, or else
    by the last capital that stands alone; where it names no letter, by saying nothing but a choice's text.

    Raises: RewardFailed where the label names no choice.
    Source: slime's `gpqa`, which without choices reads the "is" of "the answer is" as a choice, takes the
    first statement for the answer, and finds the text "42" in 142.
    """
    choices = _choices(sample.metadata)
    right = _right_letter(sample, choices)
    response = sample.response.rpartition("</think>")[2]
    chosen = chosen_letter(response, "".join(choices))
    if chosen is not None:
        return float(chosen == right)
    text = choices.get(right, "")
    return float(bool(text) and _plain(response) == _plain(text))


rewards.register("gpqa")(gpqa_reward)


def chosen_letter(response: str, letters: str) -> str | None:
    """Return the letter among `letters` that `response` chooses, or None."""
    box = last_boxed(response)
    if box is not None:
        bare = _WRAPPED.sub(r"\1", box).strip(" ().:*$").upper()
        if len(bare) == 1 and bare in letters:
            return bare
    response = _WRAPPED.sub(r"\1", response)
    stated = [match["letter"] for match in _STATED.finditer(response)]
    named = [letter.upper() for letter in stated if letter.upper() in letters]
    alone = [match["letter"] for match in _ALONE.finditer(response) if match["letter"] in letters]
    return next(iter(named[-1:] or alone[-1:]), None)


def _choices(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the letters, each with its choice's text (unknown: an empty one)."""
    given = metadata.get("choices")
    if isinstance(given, Mapping):
        return {str(letter).strip().upper(): str(text) for letter, text in given.items()}
    texts = (
        [str(text) for text in given] if isinstance(given, Sequence) and not isinstance(given, str) else []
    )
    named = metadata.get("valid_letters")
    letters = [str(letter).strip().upper() for letter in named] if named else list(DEFAULT_LETTERS)
    if texts:
        letters = (letters if named else list(string.ascii_uppercase))[: len(texts)]
    return {letter: texts[index] if index < len(texts) else "" for index, letter in enumerate(letters)}


def _right_letter(sample: Sample, choices: Mapping[str, str]) -> str:
    named, label = sample.metadata.get("correct_letter"), sample.label
    letters = list(choices)
    for candidate in (named, label):
        if isinstance(candidate, str) and candidate.strip().upper() in choices:
            return candidate.strip().upper()
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(letters):
        return letters[label]
    if isinstance(label, str) and label.strip():
        for letter, text in choices.items():
            if _plain(text) == _plain(label):
                return letter
    raise RewardFailed(
        f"the reward 'gpqa' needs a label that is a letter of {', '.join(letters)}, the index of one or the "
        f"text of a choice, not {label!r:.100}"
    )


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
