"""What a model reads between two of its turns: what its tools answered, in its chat template's words.

Invariant: an observation is what the template puts between the end of a turn and the beginning of the next;
what the model has sampled itself of that (its end-of-turn token) is not said again, and nothing that a tool
answers can end a turn or begin one.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import ConfigError
from .chat_template import TemplateRefused
from .tokenizer import PromptTokenizer

_MARK: Final = "(said)"
"""Stands for what the model said, where the template is asked what comes after it."""

_MAX_CHARS_PER_TOKEN: Final = 32
"""Characters that are tokenized for each token that may be kept, however long the answer of a tool is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one call of a tool came to."""

    name: str
    text: str
    call_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What is appended to the response: given, not sampled."""

    text: str
    tokens: list[int]
    cut_answers: int
    """answers of which the model is told the beginning only"""


@dataclass(frozen=True, kw_only=True)
class ObservationWriter:
    """Writes observations for one tokenizer and its chat template."""

    tokenizer: PromptTokenizer
    max_answer_tokens: int
    """tokens of an answer that the model is told, not counting the note that it was cut off"""

    template_variables: Mapping[str, Any]

    def write(self, said: str, answers: Sequence[Answer]) -> Observation:
        """Return what follows the turn in which the model said `said`, special tokens included.

        Raises: ConfigError where the chat template has no words for what tools answer.
        """
        told = [self._told(answer.text) for answer in answers]
        messages = [
            {"role": "tool", "name": answer.name, "content": text, "tool_call_id": answer.call_id}
            for answer, (text, _) in zip(answers, told, strict=True)
        ]
        closing = self._after_turn([])
        whole = self._after_turn(messages)
        if not whole.startswith(closing):
            raise ConfigError("the chat template of --hf-checkpoint rewrites turns when tools have answered")
        text = whole[_overlap(said, closing) :]
        return Observation(
            text=text, tokens=self.tokenizer.encode(text), cut_answers=sum(is_cut for _, is_cut in told)
        )

    def _after_turn(self, messages: Sequence[Mapping[str, Any]]) -> str:
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}, *messages]
        try:
            text = self.tokenizer.template.render(
                talk, add_generation_prompt=bool(messages), **self.template_variables
            )
        except TemplateRefused as error:
            raise ConfigError(f"tools cannot answer with this --hf-checkpoint: {error}") from error
        before, mark, after = text.partition(_MARK)
        if not mark:
            raise ConfigError(
                f"the chat template of --hf-checkpoint leaves out what a model said: {before!r}"
            )
        return after

    def _told(self, text: str) -> tuple[str, bool]:
        """Return the text as the model is told it, and whether it was cut off."""
        text = text.encode(errors="replace").decode()
        head = text[: self.max_answer_tokens * _MAX_CHARS_PER_TOKEN]
        for marker in self._markers:
            head = head.replace(marker, f"{marker[0]} {marker[1:]}")
        found = self.tokenizer(head, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in found["offset_mapping"]]
        if len(ends) > self.max_answer_tokens:
            head = head[: ends[self.max_answer_tokens - 1]]
        elif len(text) <= self.max_answer_tokens * _MAX_CHARS_PER_TOKEN:
            return head, False
        return f"{head}\n[cut off here: the whole answer has {len(text)} characters]", True

    @functools.cached_property
    def _markers(self) -> list[str]:
        """Texts that the tokenizer reads as tokens of their own: ends of turns, of calls, of thoughts."""
        return [marker for marker in self.tokenizer.get_added_vocab() if len(marker) > 1]


def _overlap(said: str, closing: str) -> int:
    """Return how many characters of `closing` the model has said already at the end of its turn."""
    return max(size for size in range(len(closing) + 1) if said.endswith(closing[:size]))
