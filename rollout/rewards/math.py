r"""The `math` reward: grades the answer in the last `\boxed{…}`."""

import re
from fractions import Fraction
from typing import Final

from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .boxed import braced, last_boxed
from .hub import checks_labels, rewards
from .numbers import parse_number

_FONT: Final = r"\\(?:text|textrm|mathrm|mathbf|textbf|mbox)"
_WRAPPED: Final = re.compile(_FONT + r"\{([^{}]*)\}")
_QUANTITY: Final = re.compile(
    r"(?P<number>.*\S)\s*" + _FONT + r"\{(?P<unit>[^{}]*)\}(?P<power>\^(?:\d|\{\d\}))?", re.DOTALL
)
_MULTIPLIERS: Final = frozenset({"dozen", "hundred", "thousand", "million", "billion", "trillion"})
"""Words behind a number that make it another one."""

_MAX_BRACES: Final = 4
"""Pairs of braces around a whole answer that are taken off: each is a walk through the text."""

_GROUPING_SPACE: Final = re.compile(r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))")
_QUAD: Final = re.compile(r"\\qquad\b")
_SPACING: Final = re.compile(r"(?:\\[,;: ]|~|\s)+")
_IDLE_SPACE: Final = re.compile(r"(?<!\d) | (?!\d)")


def label_problem(label: object) -> str | None:
    """Return what keeps `label` from being compared with, or None."""
    if isinstance(label, bool) or not isinstance(label, int | float | str) or label == "":
        return f"the reward 'math' needs a number or a text as label, not {label!r:.100}"
    return None


@rewards.register("math")
@checks_labels(label_problem)
async def math_reward(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001
    r"""Return 1.0 where the response's last `\boxed{…}` is the label, else 0.0.

    Numbers are compared exactly, whichever way they are written; anything else must be the same text up to
    spacing and LaTeX's font commands. A unit in LaTeX's text (`42\text{ cm}`) may be on either side, but not
    another one on each. The label is a number (0 is one) or a text, itself boxed or not.

    Raises: RewardFailed where there is no label, or it is neither a number nor a text.
    """
    problem = label_problem(sample.label)
    if problem is not None:
        raise RewardFailed(problem)
    answer = last_boxed(sample.response)
    if answer is None:
        return 0.0
    expected = str(sample.label)
    return float(is_same_answer(answer, last_boxed(expected) or expected))


def is_same_answer(answer: str, expected: str) -> bool:
    """Tell whether two answers are the same number or, where `expected` is none, the same text."""
    number, unit = _quantity(expected)
    if number is not None:
        answered, answered_unit = _quantity(answer)
        return answered == number and (not unit or not answered_unit or unit == answered_unit)
    return _as_text(answer) == _as_text(expected)


def _quantity(text: str) -> tuple[Fraction | None, str]:
    r"""Return the number that `text` is, and its unit (none: an empty text)."""
    number = parse_number(_tidy(text))
    match = _QUANTITY.fullmatch(text.strip()) if number is None else None
    if match is None:
        return number, ""
    words = match["unit"].lower().rstrip(". ").split()
    unit = "".join(words)
    if not unit.replace("/", "").isalpha() or any(word.removesuffix("s") in _MULTIPLIERS for word in words):
        return None, ""
    return parse_number(_tidy(match["number"])), unit + (match["power"] or "").strip("^{}")


def _tidy(text: str) -> str:
    """Return `text` without LaTeX that changes only its looks; what parts words is a single space."""
    text = _WRAPPED.sub(r"\1", text).replace("\\left", "").replace("\\right", "").replace("\\!", "")
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "")
    text = _QUAD.sub(r"\\quad", _GROUPING_SPACE.sub("", text))
    text = _unbraced(_SPACING.sub(" ", text).strip())
    return text.removesuffix(".").removesuffix("\\quad").strip()


def _unbraced(text: str) -> str:
    """Return what stands in the braces, where a pair of them holds the whole text; so for a few pairs."""
    for _ in range(_MAX_BRACES):
        if not text.startswith("{") or braced(text, 1) != text[1:-1]:
            break
        text = text[1:-1].strip()
    return text


def _as_text(text: str) -> str:
    """Return `text` for comparison: a space counts between digits only, where `1 2` is not 12."""
    return _IDLE_SPACE.sub("", _tidy(text))
