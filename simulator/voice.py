r"""What the simulated model says.

Invariant: a script is a pure function of (prompt ids, seed, weight version) and of the voice's own settings.

A prompt that lists tools is answered by calls of the first one, then from what it found (`tool_use.py`). A
prompt with arithmetic is answered with a worked sentence a step and the number in `\boxed{}`; other
prompts get a few plain sentences. How hard a prompt is depends on its ids alone, so that of the groups of
samples of one prompt some are all right, some all wrong, and most are mixed.
"""

from collections.abc import Sequence

from .arithmetic import Problem, read_problem
from .dice import Dice, mix, mix_text
from .phrases import ANSWER_LINES, FILLER, OPENERS
from .sampling import LogprobState
from .tokenizer import Tokenizer
from .tool_use import read_tool_turn

SPELLINGS = 8
"""Ways in which each plain sentence is spelled; the first is the tokenizer's own."""

SETTLED_SHARE = 0.2
"""Share of the prompts that are always right or always wrong."""

SPREAD = 0.8
"""How far the chance of the others goes from the accuracy towards the nearer of 0 and 1."""

LONG_SENTENCES = (25, 120)
"""Plain sentences in a reply that rambles on: 300 to 1,500 tokens."""

MAX_READ_TOKENS = 2048
"""Tokens of the prompt, from its end, in which arithmetic is looked for; tools also from its beginning."""

_SLIPS = (-100, -10, -9, -2, -1, 1, 2, 9, 10, 100)
"""What a wrong answer is off by."""


class Script:
    """The tokens that will be sampled: an answer of `answer_length` ids, then plain sentences without end."""

    __slots__ = ("_body", "_dice", "_end_id", "_sentences", "answer_length")

    def __init__(
        self, answer: list[int], sentences: Sequence[Sequence[int]], dice: Dice, end_id: int
    ) -> None:
        self.answer_length = len(answer)
        self._body = answer
        self._sentences = sentences
        self._dice = dice
        self._end_id = end_id

    def tokens(self, start: int, stop: int, end_at: int) -> list[int]:
        """Return the output ids `start` to `stop` (exclusive) of a reply whose end token is at `end_at`."""
        body = self._body
        while len(body) < stop:
            body.extend(self._dice.pick(self._sentences))
        if end_at < start:
            return body[start - 1 : stop - 1]
        if end_at >= stop:
            return body[start:stop]
        return [*body[start:end_at], self._end_id, *body[end_at : stop - 1]]


class Voice:
    """Writes scripts."""

    def __init__(
        self, tokenizer: Tokenizer, *, accuracy: float, long_reply_rate: float, split_rate: float
    ) -> None:
        self._tokenizer = tokenizer
        self._accuracy = accuracy
        self._long_reply_rate = long_reply_rate
        self._split_rate = split_rate
        self._first = self._spellings([sentence[1:] for sentence in FILLER])
        self._sentences = self._spellings(FILLER)

    def script(self, prompt_ids: Sequence[int], seed: int, weight_version: str) -> Script:
        """Return what is said after `prompt_ids`."""
        prompt_hash = mix(LogprobState(prompt_ids).value)
        dice = Dice(mix(prompt_hash ^ mix(seed & ((1 << 64) - 1)) ^ mix_text(weight_version)))
        text = self._tokenizer.decode(prompt_ids[-MAX_READ_TOKENS:])
        head = text
        if len(prompt_ids) > MAX_READ_TOKENS:
            head = self._tokenizer.decode(prompt_ids[:MAX_READ_TOKENS])
        tool_turn = read_tool_turn(head, text)
        problem = read_problem(text) if tool_turn is None else None
        if tool_turn is not None:
            right = dice.happens(chance_of(prompt_hash, self._accuracy))
            answer = self._spell(self._tokenizer.encode(tool_turn.words(dice, right=right)), dice)
        elif problem is not None:
            answer = self._solve(problem, dice, right=dice.happens(chance_of(prompt_hash, self._accuracy)))
        else:
            answer = self._ramble(dice)
        return Script(answer, self._sentences, dice, self._tokenizer.end_id)

    def _ramble(self, dice: Dice) -> list[int]:
        answer = list(dice.pick(self._first))
        for _ in range(self._filler_count(dice, usual=(1, 10))):
            answer.extend(dice.pick(self._sentences))
        return answer

    def _solve(self, problem: Problem, dice: Dice, *, right: bool) -> list[int]:
        answer = problem.answer if right else problem.answer + dice.pick(_SLIPS)
        lines = [dice.pick(OPENERS)]
        lines += [f" {step.operation} = {step.value}." for step in problem.steps[:-1]]
        lines.append(f" {problem.steps[-1].operation} = {answer}.")
        last = dice.pick(ANSWER_LINES)
        brace = last.index("{")
        conclusion = f"{last[: brace + 1]}{answer}{last[brace + 2 :]}"
        ids = self._spell(self._tokenizer.encode("".join(lines).removeprefix(" ")), dice)
        for _ in range(self._filler_count(dice, usual=(0, 3))):
            ids.extend(dice.pick(self._sentences))
        return ids + self._spell(self._tokenizer.encode(conclusion), dice)

    def _filler_count(self, dice: Dice, *, usual: tuple[int, int]) -> int:
        return dice.between(*(LONG_SENTENCES if dice.happens(self._long_reply_rate) else usual))

    def _spellings(self, sentences: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return every sentence in `SPELLINGS` ways."""
        spellings: list[tuple[int, ...]] = []
        for sentence in sentences:
            ids = self._tokenizer.encode(sentence)
            dice = Dice(mix_text(sentence))
            spellings.append(tuple(ids))
            spellings += [tuple(self._spell(ids, dice)) for _ in range(SPELLINGS - 1)]
        return tuple(spellings)

    def _spell(self, ids: Sequence[int], dice: Dice) -> list[int]:
        """Return `ids` with some of them sampled as two smaller tokens, as a real model does now and then."""
        spelled: list[int] = []
        for token_id in ids:
            halves = self._tokenizer.halves(token_id) if dice.happens(self._split_rate) else None
            spelled.extend(halves or (token_id,))
        return spelled


def chance_of(prompt_hash: int, accuracy: float) -> float:
    """Return the chance that a prompt is answered right; its mean over all prompts is `accuracy`."""
    dice = Dice(prompt_hash)
    if dice.happens(SETTLED_SHARE):
        return 1.0 if dice.happens(accuracy) else 0.0
    away = (2 * dice.below(1001) / 1000 - 1) * SPREAD
    return accuracy + away * min(accuracy, 1 - accuracy)
