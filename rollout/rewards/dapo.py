"""The `dapo` reward: grades the last `Answer: …` of a response."""

import re
from typing import Any, Final

from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .boxed import last_boxed
from .hub import checks_labels, rewards, takes_answer_as
from .labels import scalar_problem
from .numbers import parse_number

ANSWER_CHARS: Final = 300
"""How much of a response's end is searched for the answer: what DAPO was trained with."""

NO_ANSWER: Final = "[INVALID]"
"""The `pred` of a response without an answer."""

_ANSWER: Final = re.compile(r"Answer\s*:\s*([^\n]+)", re.IGNORECASE)
_WRAPPED: Final = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|overline)\{(.*?)\}")
_UNITS: Final = re.compile(
    r"\b(?:square|cubic|units?|inches|feet|foot|yards?|miles?|meters?|metres?|centimeters?|cm|km|mm|"
    r"hours?|hrs|minutes?|seconds?|days?|weeks?|months?|years?|degrees?|cents?|dollars?|percent|"
    r"points?|pieces?|people|students?|men|women|children)\b",
    re.IGNORECASE,
)
_ARTICLES: Final = re.compile(r"\b(?:an?|the)\s+")
_DROPPED: Final = re.compile(r"\\left|\\right|\\ |\\!|\\,|\\;|\\\$|\\%|\^\{?\\circ\}?|[$%*]|\s")


def label_problem(label: object) -> str | None:
    """Return what keeps `label` from being compared with, or None."""
    return scalar_problem(label, "dapo")


@takes_answer_as("Answer: {}")
@checks_labels(label_problem)
async def dapo_reward(args: RolloutConfig, sample: Sample) -> dict[str, Any]:  # noqa: ARG001
    """Return `{"score": ±1.0, "acc": bool, "pred": str}`; give `reward_key="score"` to train on it.

    The answer is what follows the last `Answer:` in the response's last 300 characters, without units,
    LaTeX's fonts and signs around it. Numbers are compared exactly, anything else as text.

    Raises: RewardFailed where there is no label, or it is neither a number nor a text.
    Source: slime's `dapo`, which cuts labels down to whole numbers: 3.7 takes 3, and 1/2 raises.
    """
    problem = label_problem(sample.label)
    if problem is not None:
        raise RewardFailed(problem)
    found = _ANSWER.findall(sample.response[-ANSWER_CHARS:])
    predicted = normalized(found[-1]) if found else NO_ANSWER
    is_right = bool(found) and is_same(predicted, normalized(str(sample.label)))
    return {"score": 1.0 if is_right else -1.0, "acc": is_right, "pred": predicted}


rewards.register("dapo")(dapo_reward)


def is_same(predicted: str, expected: str) -> bool:
    """Tell whether two normalised answers are the same number or, where `expected` is none, the same text."""
    number = parse_number(expected)
    return parse_number(predicted) == number if number is not None else predicted == expected


def normalized(answer: str) -> str:
    """Return `answer` as it is compared: what its last `=` and its box hold, without units and looks.

    Source: the normalisation of Minerva's answers, which DAPO uses.
    """
    answer = answer.rpartition("=")[2]
    boxed = last_boxed(answer)
    answer = _WRAPPED.sub(r"\1", answer if boxed is None else boxed)
    answer = _DROPPED.sub("", _UNITS.sub("", _ARTICLES.sub("", answer)))
    number = answer.replace(",", "")
    return (number if parse_number(number) is not None else answer).rstrip(".")
