r"""The `math` reward: grades the answer in the last `\boxed{…}`."""

import re
from typing import Final

from ...errors import RolloutError
from ..config import RolloutConfig
from ..sample import Sample
from .boxed import last_boxed
from .hub import rewards
from .numbers import parse_number

_WRAPPED: Final = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\{([^{}]*)\}")
_SPACING: Final = re.compile(r"\\[,;:! ]|\\q?quad\b|~|\s+")


@rewards.register("math")
async def math_reward(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001
    r"""Return 1.0 where the response's last `\boxed{…}` is the label, else 0.0.

    Numbers are compared exactly, whichever way they are written; anything else must be the same text up to
    spacing and LaTeX's font commands. The label is a number (0 is one) or a text, itself boxed or not.

    Raises: RolloutError where there is no label, or it is neither a number nor a text.
    """
    label = sample.label
    if isinstance(label, bool) or not isinstance(label, int | float | str) or label == "":
        raise RolloutError(f"the reward 'math' needs a number or a text as label, not {label!r:.100}")
    answer = last_boxed(sample.response)
    if answer is None:
        return 0.0
    expected = str(label)
    return float(is_same_answer(answer, last_boxed(expected) or expected))


def is_same_answer(answer: str, expected: str) -> bool:
    """Tell whether two answers are the same number or, where `expected` is none, the same text."""
    answer, expected = _plain(answer), _plain(expected)
    number = parse_number(expected)
    if number is not None:
        return parse_number(answer) == number
    return answer == expected


def _plain(text: str) -> str:
    text = _WRAPPED.sub(r"\1", text).replace("\\left", "").replace("\\right", "")
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "")
    text = _SPACING.sub("", text)
    return text.removesuffix(".")
