"""The `f1` reward: how many words an answer shares with the right one."""

import re
import string
from collections import Counter
from typing import Final

from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .hub import checks_labels, rewards

CLOSED_ANSWERS: Final = frozenset({"yes", "no", "noanswer"})
"""Answers that are right or wrong as a whole."""

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def label_problem(label: object) -> str | None:
    """Return what keeps `label` from being compared with, or None."""
    labels = label if isinstance(label, list | tuple) else [label]
    if not labels or not all(isinstance(item, str) for item in labels):
        return f"the reward 'f1' needs a text as label, or a list of them, not {label!r:.100}"
    return None


@checks_labels(label_problem)
async def f1_reward(args: RolloutConfig, sample: Sample) -> float:  # noqa: ARG001
    """Return the F1 of the response's words against the label's, from 0.0 to 1.0; of several, the best.

    Case, punctuation and articles do not count, unless there is nothing else. Yes, no and noanswer are
    right or wrong as a whole.

    Raises: RewardFailed where the label is no text.
    Source: slime's `f1` (SQuAD's), which gives 0 to a right answer that is empty or all articles.
    """
    problem = label_problem(sample.label)
    if problem is not None:
        raise RewardFailed(problem)
    labels = sample.label if isinstance(sample.label, list | tuple) else [sample.label]
    return max(f1(sample.response, label) for label in labels)


rewards.register("f1")(f1_reward)


def f1(answer: str, expected: str) -> float:
    """Return the harmonic mean of precision and recall of the words, counted as often as they stand."""
    answered, wanted = normalized(answer), normalized(expected)
    if answered == wanted:
        return float(bool(answered) or answer.strip().lower() == expected.strip().lower())
    if answered in CLOSED_ANSWERS or wanted in CLOSED_ANSWERS:
        return 0.0
    ours, theirs = answered.split(), wanted.split()
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def normalized(text: str) -> str:
    """Return `text` in lower case without punctuation and articles, words parted by single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
