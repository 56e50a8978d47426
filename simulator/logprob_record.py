"""The log-probabilities that a reply tells: of the prompt, of the output, of likely and of chosen tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .requests import Prompt
from .sampling import LogprobState
from .tokenizer import Tokenizer

Entry = tuple[float | None, int, str | None]
"""Log-probability in nats (None for the first token that is told), token id, and its text where asked for."""


@dataclass(slots=True)
class _Columns:
    tokens: list[Entry] = field(default_factory=list)
    top: list[list[Entry] | None] = field(default_factory=list)
    chosen: list[list[Entry] | None] = field(default_factory=list)


class LogprobRecord:
    """Grows with the output. Costs O(1) a token and is made only for a call that asked for it."""

    def __init__(
        self, prompt: Prompt, prompt_ids: Sequence[int], weight_version: str, tokenizer: Tokenizer
    ) -> None:
        self._tokenizer = tokenizer
        self._top_count = prompt.top_logprobs
        self._chosen_ids = prompt.token_ids
        self._with_text = prompt.text_in_logprobs
        self._is_plain = not (prompt.top_logprobs or prompt.token_ids or prompt.text_in_logprobs)
        self._input = _Columns()
        self._output = _Columns()
        start = prompt.logprob_start if prompt.logprob_start >= 0 else len(prompt_ids)
        self._state = LogprobState(prompt_ids[:start])
        if start < len(prompt_ids):
            first = prompt_ids[start]
            self._input.tokens.append((None, first, self._text_of(first)))
            self._input.top.append(None)
            self._input.chosen.append(None)
            self._state.extend((first,))
            self._add(self._input, prompt_ids[start + 1 :], weight_version)

    def extend(self, ids: Sequence[int], weight_version: str) -> None:
        """Add output tokens that the weights `weight_version` sampled."""
        self._add(self._output, ids, weight_version)

    def fields(self, start: int, stop: int) -> dict[str, Any]:
        """Return the fields of `meta_info` with the output tokens `start` to `stop` (exclusive)."""
        told: dict[str, Any] = {
            "input_token_logprobs": self._input.tokens,
            "output_token_logprobs": self._output.tokens[start:stop],
            "output_token_logprobs_length": stop,
        }
        if self._top_count:
            told["input_top_logprobs"] = self._input.top
            told["output_top_logprobs"] = self._output.top[start:stop]
        if self._chosen_ids:
            told["input_token_ids_logprobs"] = self._input.chosen
            told["output_token_ids_logprobs"] = self._output.chosen[start:stop]
        return told

    def _add(self, columns: _Columns, ids: Sequence[int], version: str) -> None:
        if self._is_plain:
            logprobs = self._state.sample(ids, version)
            columns.tokens += [
                (logprob, token_id, None) for logprob, token_id in zip(logprobs, ids, strict=True)
            ]
            return
        for token_id in ids:
            columns.tokens.append(self._entry(token_id, version))
            likely = {token_id, *self._state.candidates(self._top_count, self._tokenizer.size)}
            best = sorted(self._entries(likely, version), key=lambda entry: (-(entry[0] or 0.0), entry[1]))
            columns.top.append(best[: self._top_count])
            columns.chosen.append(self._entries(self._chosen_ids, version))
            self._state.extend((token_id,))

    def _entries(self, ids: Iterable[int], version: str) -> list[Entry]:
        return [self._entry(token_id, version) for token_id in ids]

    def _entry(self, token_id: int, version: str) -> Entry:
        return self._state.logprob(token_id, version), token_id, self._text_of(token_id)

    def _text_of(self, token_id: int) -> str | None:
        return self._tokenizer.decode((token_id,)) if self._with_text else None
