"""A multi-turn GRPO load: groups of siblings that share a prompt, each growing it turn by turn.

Lengths are in blocks of `BLOCK_TOKENS` tokens. A block has an id of its own, and stands at one place of one
sequence only, except that siblings share their group's prompt and groups share a few system prompts: equal
ids mean equal tokens with equal tokens before them.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

BLOCK_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShape:
    """What is random, and how. Lengths in tokens; ranges are uniform, outputs log-normal."""

    groups: int = 128
    siblings: int = 8
    system_prompts: tuple[int, ...] = (256, 1024, 2048, 4096)
    question: tuple[int, int] = (64, 768)
    max_turns: int = 6
    go_on_probability: float = 0.75
    """that a sample takes another turn after one, up to `max_turns`"""
    output_median: int = 256
    output_sigma: float = 1.1
    """of the logarithm: one output in 20 is longer than six times the median"""
    max_output: int = 8192
    observation: tuple[int, int] = (32, 1024)
    tool_mean_s: float = 2.0
    straggler_probability: float = 0.0
    """that a sample ends with an output of full length"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What is added to the sequence: the worker's output, then the tool's observation, `tool_s` later."""

    output: Sequence[int]
    observation: Sequence[int]
    tool_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One sample: its prompt and its turns."""

    session: str
    prompt: Sequence[int]
    turns: Sequence[Turn]


def make_load(shape: LoadShape, seed: int) -> list[Trajectory]:
    """Return all trajectories, the siblings of a group one after another."""
    rng = random.Random(seed)
    ids = itertools.count(1)

    def blocks(tokens: float) -> list[int]:
        return list(itertools.islice(ids, max(1, round(tokens / BLOCK_TOKENS))))

    systems = [blocks(tokens) for tokens in shape.system_prompts]
    load = []
    for group in range(shape.groups):
        prompt = rng.choice(systems) + blocks(rng.uniform(*shape.question))
        for sibling in range(shape.siblings):
            turns = [
                Turn(
                    output=blocks(tokens),
                    observation=blocks(rng.uniform(*shape.observation)),
                    tool_s=rng.expovariate(1 / shape.tool_mean_s),
                )
                for tokens in _outputs(shape, rng)
            ]
            load.append(Trajectory(session=f"{seed}-{group}-{sibling}", prompt=prompt, turns=turns))
    return load


def shareable(load: Sequence[Trajectory]) -> float:
    """Return the share of all prompts' blocks that one cache, large enough to keep them all, would know."""
    seen: set[int] = set()
    asked = new = 0
    for sample in load:
        prompt = list(sample.prompt)
        for turn in sample.turns:
            asked += len(prompt)
            new += len(set(prompt) - seen)
            seen.update(prompt, turn.output)
            prompt += [*turn.output, *turn.observation]
    return 1 - new / asked


def _outputs(shape: LoadShape, rng: random.Random) -> Iterator[float]:
    """Yield the lengths of a sample's outputs."""
    is_straggler = rng.random() < shape.straggler_probability
    for turn in itertools.count(1):
        is_last = turn == shape.max_turns or rng.random() > shape.go_on_probability
        if is_last and is_straggler:
            yield shape.max_output
            return
        tokens = shape.output_median * rng.lognormvariate(0, shape.output_sigma)
        yield min(tokens, shape.max_output)
        if is_last:
            return
