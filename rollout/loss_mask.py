"""Which tokens of a conversation are trained on: those that the model says itself.

Invariant: the ids are those of the conversation as its chat template renders it, whole and once, or, for
distilled models, those that an engine would have read and sampled; a token is trained on if all of its
characters are the model's.

What is the model's, the template itself tells: in a turn of the assistant, everything after the generation
prompt, up to and including the end of the turn. That is one rule where slime has a computation for each
family of models, and so it holds for what those get wrong: consecutive tool messages are rendered together,
turns of the past keep the form that the template gives them, and `step_loss_mask` counts for any content.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, Protocol

from ..errors import ConfigError
from .chat_template import Messages, Tools

_TURN: Final = "<|im_start|>"
"""Begins a turn, in the format of Qwen's chat templates."""

_ASSISTANT_TURN: Final = f"{_TURN}assistant\n"
_DISTILL_ASSISTANT: Final = "<｜Assistant｜>"
_DISTILL_END: Final = "<｜end▁of▁sentence｜>"


class TokenizerType(StrEnum):
    """How a model's conversations are marked; the names are slime's."""

    QWEN = "qwen"
    QWEN3 = "qwen3"
    QWEN3_5 = "qwen3_5"
    DISTILL_QWEN = "distill_qwen"


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer: Espalier's own has it, and the fast ones of `transformers`."""

    def apply_chat_template(
        self, messages: Any, *, tools: Any = None, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> Any:
        """Return the text of the messages, if not `tokenize`."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """Return the tokens that are no part of the base vocabulary."""
        ...

    def decode(self, token_ids: list[int], /) -> Any:
        """Return the text of `token_ids`."""
        ...

    def __call__(
        self, text: str, /, *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> Mapping[str, Any]:
        """Return `input_ids` and `offset_mapping`."""
        ...


class MultiTurnLossMaskGenerator:
    """Token ids and loss masks of conversations.

    `qwen`, `qwen3` and `qwen3_5` train on every turn of the assistant; `distill_qwen` trains on the last
    message only, because its templates cut the reasoning out of all of them. A tokenizer that has the
    distilled models' tokens is taken for one of theirs under the name `qwen` too, as in slime.
    """

    def __init__(self, tokenizer: ChatTokenizer, tokenizer_type: str = "qwen") -> None:
        """Take the tokenizer with its chat template.

        Raises: ConfigError where the type is not known.
        """
        known = [each.value for each in TokenizerType]
        if tokenizer_type not in known:
            raise ConfigError(f"unknown --loss-mask-type {tokenizer_type!r}: known are {', '.join(known)}")
        self.tokenizer = tokenizer
        self.tokenizer_type = TokenizerType(tokenizer_type)
        self._added_vocab = tokenizer.get_added_vocab()

    def get_loss_mask(self, messages: Messages, tools: Tools | None = None) -> tuple[list[int], list[int]]:
        """Return the ids of the conversation, and 1 or 0 for each: whether it is trained on.

        A message with a `step_loss_mask` other than 1 is not.

        Raises: ValueError where a message spells the marks of a turn, so that turns cannot be told apart, or
        the template renders other turns than there are messages; TemplateRefused where it renders none.
        """
        is_distilled = self.tokenizer_type is TokenizerType.DISTILL_QWEN or (
            self.tokenizer_type is TokenizerType.QWEN and _DISTILL_ASSISTANT in self._added_vocab
        )
        return self._last_message(messages, tools) if is_distilled else self._all_turns(messages, tools)

    def get_response_lengths(self, loss_masks: Sequence[Sequence[int]]) -> list[int]:
        """Return for each mask how many entries there are from its first 1 to its end."""
        return [len(mask) - list(mask).index(1) if 1 in mask else 0 for mask in loss_masks]

    def get_text_from_loss_mask(self, token_ids: Sequence[int], loss_masks: Sequence[int]) -> list[str]:
        """Return the texts that are trained on: one for each run of ones."""
        runs: list[list[int]] = [[]]
        for token, mask in zip(token_ids, loss_masks, strict=True):
            if mask == 1:
                runs[-1].append(token)
            elif runs[-1]:
                runs.append([])
        return [str(self.tokenizer.decode(run)) for run in runs if run]

    def _all_turns(self, messages: Messages, tools: Tools | None) -> tuple[list[int], list[int]]:
        for what, values in (("a message", messages), ("a tool", tools or ())):
            if _spells(values, _TURN):
                raise ValueError(f"{what} spells {_TURN}, which begins a turn: turns cannot be told apart")
        text = self._rendered(messages, tools)
        spans = self._trained_spans(text, messages, self._generation_prompt(tools))
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = list(found["input_ids"])
        mask = [0] * len(ids)
        remaining = iter([*spans, (len(text) + 1, len(text) + 1)])
        start, end = next(remaining)
        for position, (first, last) in enumerate(found["offset_mapping"]):
            while first >= end:
                start, end = next(remaining)
            mask[position] = int(start <= first and last <= end)
        return ids, mask

    def _trained_spans(self, text: str, messages: Messages, prompt: str) -> list[tuple[int, int]]:
        """Return where in `text` the model speaks, in characters."""
        turns = [message for message in messages if message["role"] == "assistant"]
        starts = _positions(text, _TURN)
        blocks = [
            (start, end)
            for start, end in pairwise([*starts, len(text)])
            if text.startswith(_ASSISTANT_TURN, start)
        ]
        if len(blocks) != len(turns):
            raise ValueError(
                f"the chat template renders {len(blocks)} turns of the assistant for {len(turns)} messages: "
                f"is it one of Qwen's, with {_TURN}?"
            )
        opening = prompt if prompt.startswith(_ASSISTANT_TURN) else _ASSISTANT_TURN
        return [
            (start + len(opening if text.startswith(opening, start) else _ASSISTANT_TURN), end)
            for (start, end), turn in zip(blocks, turns, strict=True)
            if turn.get("step_loss_mask", 1) == 1
        ]

    def _last_message(self, messages: Messages, tools: Tools | None) -> tuple[list[int], list[int]]:
        """Return all but the last message as a prompt, and that as it is: no template touches it."""
        last = messages[-1] if messages else {}
        content = last.get("content")
        if last.get("role") != "assistant" or not isinstance(content, str):
            raise ValueError("the last message must be the assistant's, with a text as content")
        prompt = self._rendered(messages[:-1], tools, add_generation_prompt=True)
        _, mark, opening = prompt.rpartition(_DISTILL_ASSISTANT)
        if mark and opening and content.startswith(opening):
            content = content[len(opening) :]  # such as <think>, which the prompt has already
        end = _DISTILL_END if _DISTILL_END in self._added_vocab else ""
        prompt_ids = self._ids(prompt)
        response_ids = self._ids(content + end)
        trained = int(last.get("step_loss_mask", 1) == 1)
        return prompt_ids + response_ids, [0] * len(prompt_ids) + [trained] * len(response_ids)

    def _generation_prompt(self, tools: Tools | None) -> str:
        """Return what the template adds where the model is to speak; the same after any message of a user."""
        asked = [{"role": "user", "content": "?"}]
        without = self._rendered(asked, tools)
        return self._rendered(asked, tools, add_generation_prompt=True)[len(without) :]

    def _rendered(
        self, messages: Messages, tools: Tools | None, *, add_generation_prompt: bool = False
    ) -> str:
        text = self.tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _positions(text: str, part: str) -> list[int]:
    found = []
    position = text.find(part)
    while position >= 0:
        found.append(position)
        position = text.find(part, position + len(part))
    return found


def _spells(value: object, part: str) -> bool:
    """Tell whether any text within `value` holds `part`."""
    if isinstance(value, str):
        return part in value
    if isinstance(value, Mapping):
        return any(_spells(key, part) or _spells(item, part) for key, item in value.items())
    return isinstance(value, Sequence) and any(_spells(item, part) for item in value)
