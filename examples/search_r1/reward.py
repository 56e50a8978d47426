"""The reward: 1.0 for the right answer, a part of 0.5 for words in common with it, 0.0 for none."""

import re

from espalier.rollout import GenerateState, RolloutConfig, Sample
from espalier.rollout.rewards.f1 import f1, normalized
from espalier.rollout.tool_calling import exchange_of, said_in

_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


async def answer_reward(args: RolloutConfig, sample: Sample) -> float:
    """Grade the last answer of the last turn: what was read in a passage is not the model's answer."""
    tokenizer, turns = GenerateState(args).tokenizer, exchange_of(sample).turns
    assert tokenizer is not None  # there are no turns without one
    answers = _ANSWER.findall(said_in(turns[-1], sample, tokenizer))
    if not answers:
        return 0.0
    if any(normalized(answers[-1]) == normalized(label) for label in sample.label):
        return 1.0
    return 0.5 * max(f1(answers[-1], label) for label in sample.label)
