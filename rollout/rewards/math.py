r"""The `math` and `deepscaler` rewards: grade the answer in the last `\boxed{…}`.

Numbers and texts are compared here, exactly. Only what remains, expressions, is asked of sympy, in processes
beside us (`symbolic`).
"""

import functools
import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .boxed import braced, last_boxed
from .hub import checks_labels, keeps_time, rewards, takes_answer_as
from .labels import scalar_problem
from .numbers import parse_number
from .symbolic import MAX_EXPRESSION_CHARS, is_installed, symbolic_pool

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

_COMMAND: Final = re.compile(r"\\[A-Za-z]+")
_WORD: Final = re.compile(r"[^\W\d_]{3,}")
_FONT_COMMAND: Final = re.compile(_FONT + r"\b")
_DIGITS_APART: Final = re.compile(r"\d(?:\s|~|,|\\[,;: !]|\\q?quad\b)+\d")
_ASSIGNMENT: Final = re.compile(r"[A-Za-z][A-Za-z]?\s*=\s*(?P<value>[^=]+)")
_DEGREES: Final = re.compile(r"\^\s*(?:\\circ\b|\{\s*\\circ\s*\})")

_log = logging.getLogger(__name__)


def label_problem(label: object) -> str | None:
    """Return what keeps `label` from being compared with, or None."""
    return scalar_problem(label, "math")


@keeps_time
@takes_answer_as(r"\boxed{{{}}}")
@checks_labels(label_problem)
async def math_reward(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001
    r"""Return 1.0 where the response's last `\boxed{…}` is the label, else 0.0.

    Numbers are compared exactly, whichever way they are written, and texts up to spacing and LaTeX's font
    commands; expressions are equal where sympy shows it, with the extra `math`. A unit in LaTeX's text
    (`42\text{ cm}`) may be on either side, but not another one on each. Where the label is a whole number
    the answer must be a number too, not something that amounts to it. The label is a number (0 is one) or a
    text, itself boxed or not.

    Raises: RewardFailed where there is no label, or it is neither a number nor a text.
    Source: slime's `math`, which calls 0 a wrong label, and (x+1)/2 and x+1/2 the same.
    """
    problem = label_problem(sample.label)
    if problem is not None:
        raise RewardFailed(problem)
    return await graded(sample.response, [sample.label])


rewards.register("math")(math_reward)


def labels_problem(label: object) -> str | None:
    """Return what keeps `label`, or the labels in it, from being compared with; or None."""
    labels = label if isinstance(label, list | tuple) else [label]
    if not labels:
        return "the reward 'deepscaler' needs a label, not an empty list"
    return next(filter(None, (scalar_problem(item, "deepscaler") for item in labels)), None)


@keeps_time
@takes_answer_as(r"</think>\boxed{{{}}}")
@checks_labels(labels_problem)
async def deepscaler_reward(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001
    """Return 1.0 where the answer behind the thoughts is the label or one of them, else 0.0.

    The answer stands behind the last `</think>`, or else behind the last `###Response`; without either the
    model has not come to one. It is graded as `math` does.

    Raises: RewardFailed where a label is neither a number nor a text.
    Source: slime's `deepscaler`, which fails on a list of labels.
    """
    problem = labels_problem(sample.label)
    if problem is not None:
        raise RewardFailed(problem)
    for mark in ("</think>", "###Response"):
        if mark in sample.response:
            labels = sample.label if isinstance(sample.label, list | tuple) else [sample.label]
            return await graded(sample.response.rpartition(mark)[2], labels)
    return 0.0


rewards.register("deepscaler")(deepscaler_reward)


async def graded(response: str, labels: Sequence[object]) -> float:
    """Return 1.0 where the last box of `response` holds one of the labels, else 0.0."""
    answer = last_boxed(response)
    if answer is None:
        return 0.0
    for label in labels:
        expected = str(label)
        if await is_same_answer(answer, last_boxed(expected) or expected):
            return 1.0
    return 0.0


async def is_same_answer(answer: str, expected: str) -> bool:
    """Tell whether two answers are the same number, the same text or the same expression.

    Points and the like are compared part by part, and `x=5` is 5.
    """
    if ("=" in answer) != ("=" in expected):
        answer, expected = _value(answer), _value(expected)
    parts = list(zip(_parts(answer), _parts(expected), strict=False))
    if len(parts) > 1 and len(_parts(answer)) == len(_parts(expected)) and _ends(answer) == _ends(expected):
        for answered, wanted in parts:
            if not await is_same_answer(answered, wanted):
                return False
        return True
    verdict = exact_verdict(answer, expected)
    if verdict is not None:
        return verdict
    if not is_installed():
        _warn_once()
        return False
    return await symbolic_pool.is_equal(_tidy(answer), _tidy(expected))


def exact_verdict(answer: str, expected: str) -> bool | None:
    """Tell whether two answers are the same, or None where they are expressions that may be equal."""
    number, unit = _quantity(expected)
    if number is not None:
        answered, answered_unit = _quantity(answer)
        if answered is not None:
            return answered == number and (not unit or not answered_unit or unit == answered_unit)
        if number.denominator == 1:
            return False
    if _as_text(answer) == _as_text(expected):
        return True
    return None if is_expression(answer) and is_expression(expected) else False


def _value(text: str) -> str:
    """Return what a variable is said to be, or the text where it says no such thing."""
    match = _ASSIGNMENT.fullmatch(_tidy(text))
    return match["value"] if match else text


def _ends(text: str) -> str:
    tidy = _tidy(text)
    return tidy[:1] + tidy[-1:]


def _parts(text: str) -> list[str]:
    """Return what commas part in a text in brackets, those in inner brackets left alone; else nothing."""
    tidy = _tidy(text)
    if tidy[:1] not in ("(", "[") or tidy[-1:] not in (")", "]"):
        return []
    parts, depth = [""], 0
    for character in tidy[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return []
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def is_expression(text: str) -> bool:
    """Tell whether `text` is all mathematics, with nothing that algebra would misread.

    Words are products of letters to it (`Sun` is `nuS`), and spaces and commas between digits nothing.
    """
    return (
        bool(text.strip())
        and len(text) <= MAX_EXPRESSION_CHARS
        and not _WORD.search(_COMMAND.sub(" ", text))
        and not _FONT_COMMAND.search(text)
        and not _DIGITS_APART.search(text)
    )


@functools.cache
def _warn_once() -> None:
    _log.warning("event=no_symbolic_comparison fix='pip install espalier[math]'")


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
    text = _DEGREES.sub("", text).replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "")
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
