"""One generation on its way: the tokens sampled so far, why it ended, and how it is told.

Everything here is synchronous: `scheduler.py` says when to `advance`, the endpoint asks for the `view` that a
client is to see.
"""

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from .logprob_record import LogprobRecord
from .output_text import OutputText
from .requests import Prompt
from .tokenizer import Tokenizer
from .voice import Voice


class Stage(StrEnum):
    """Where a generation stands."""

    HELD = "held"
    """Generation is paused or the weights are being updated: not in the queue yet."""
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Generation:
    """One sequence being sampled. `news` is set whenever there is something new to tell."""

    def __init__(
        self,
        prompt: Prompt,
        prompt_ids: list[int],
        *,
        seed: int,
        max_new_tokens: int,
        weight_version: str,
        voice: Voice,
        tokenizer: Tokenizer,
        news: asyncio.Event,
        clock: Callable[[], float],
    ) -> None:
        params = prompt.params
        self.rid = prompt.rid
        self.prompt_ids = prompt_ids
        self.stage = Stage.WAITING
        self.finish_reason: dict[str, Any] | None = None
        self.output_ids: list[int] = []
        self.cached_tokens = 0
        self.retractions = 0
        self.ready_at = 0.0
        self.reads_whole_prompt = prompt.return_logprob and prompt.logprob_start >= 0
        self.stream_interval = params.stream_interval
        self._max_new_tokens = max_new_tokens
        self._min_new_tokens = params.min_new_tokens
        self._forced_id = params.forced_id
        self._stop_ids = frozenset[int]() if params.ignore_eos else params.stop_token_ids | {tokenizer.end_id}
        self._seed = seed
        self._voice = voice
        self._news = news
        self._clock = clock
        self._began_at = self._ended_at = clock()
        self._left_from_queue = False
        self._spans: list[tuple[str, int]] = [(weight_version, 0)]
        self._text = OutputText(
            tokenizer.visible_pieces if params.skip_special_tokens else tokenizer.pieces,
            stop=params.stop,
            patterns=params.stop_patterns,
            trim=not params.no_stop_trim,
        )
        self._logprobs = (
            LogprobRecord(prompt, prompt_ids, weight_version, tokenizer) if prompt.return_logprob else None
        )
        self._write_script()

    @property
    def is_finished(self) -> bool:
        """No further token will be sampled."""
        return self.finish_reason is not None

    @property
    def weight_version(self) -> str:
        """The weights that sample the next token."""
        return self._spans[-1][0]

    def advance(self, limit: int | None = None) -> None:
        """Sample up to `limit` further tokens (None: to the end), unless finished."""
        if self.is_finished:
            return
        start = len(self.output_ids)
        stop = self._max_new_tokens if limit is None else min(start + limit, self._max_new_tokens)
        if self._forced_id is not None:
            sampled = [self._forced_id] * (stop - start)
        else:
            sampled = self._script.tokens(start, stop, self._end_at)
        sampled, stop_id = self._until_stop_id(sampled)
        count, stop_text = self._text.extend(sampled)
        sampled = sampled[:count]
        self.output_ids += sampled
        if self._logprobs is not None:
            self._logprobs.extend(sampled, self.weight_version)
        if stop_text is not None:
            self._finish({"type": "stop", "matched": stop_text})
        elif stop_id is not None:
            self._text.trim_last_token()
            self._finish({"type": "stop", "matched": stop_id})
        elif len(self.output_ids) >= self._max_new_tokens:
            self._finish({"type": "length", "length": len(self.output_ids)})
        elif sampled:
            self._news.set()

    def abort(self) -> None:
        """End it with what it has, in the form of a running generation or of one in the queue."""
        if self.stage is Stage.RUNNING:
            self._finish({"type": "abort", "message": "Aborted", "status_code": None, "err_type": None})
        else:
            self._left_from_queue = True
            self._finish({"type": "abort", "message": "Abort in waiting queue"})

    def refuse(self, status: int, message: str) -> None:
        """End it before it began; `status` is what a client gets that does not stream."""
        self._left_from_queue = True
        self._finish({"type": "abort", "status_code": status, "message": message})

    def change_weights(self, weight_version: str) -> None:
        """Sample from the weights `weight_version` from the next token on."""
        if self.is_finished or weight_version == self.weight_version:
            return
        if self._spans[-1][1] == len(self.output_ids):
            self._spans.pop()
        self._spans.append((weight_version, len(self.output_ids)))
        self._write_script()

    def view(self, start: int, stop: int, *, with_text: bool, is_first: bool) -> dict[str, Any]:
        """Return the reply with the output tokens `start` to `stop` (exclusive).

        The view that reaches the last token of a finished generation is the final one and says so. `is_first`
        adds the time of sending, which SGLang tells once.
        """
        final = self.is_finished and stop == len(self.output_ids)
        reply: dict[str, Any] = {}
        if with_text:
            reply["text"] = self._text.between(start, stop, final=final)
        reply["output_ids"] = self.output_ids[start:stop]
        meta = (
            self._short_meta(start, stop) if self._left_from_queue else self._meta(start, stop, final=final)
        )
        if is_first:
            meta["response_sent_to_client_ts"] = time.time()
        reply["meta_info"] = meta
        return reply

    def _write_script(self) -> None:
        self._script = self._voice.script(self.prompt_ids, self._seed, self.weight_version)
        self._end_at = max(self._script.answer_length, self._min_new_tokens, len(self.output_ids))

    def _finish(self, reason: dict[str, Any]) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason
            self._ended_at = self._clock()
            self._news.set()

    def _until_stop_id(self, sampled: list[int]) -> tuple[list[int], int | None]:
        first = max(0, self._min_new_tokens - len(self.output_ids))
        for i in range(first, len(sampled)) if self._stop_ids else ():
            if sampled[i] in self._stop_ids:
                return sampled[: i + 1], sampled[i]
        return sampled, None

    def _meta(self, start: int, stop: int, *, final: bool) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "id": self.rid,
            "finish_reason": self.finish_reason if final else None,
            "prompt_tokens": len(self.prompt_ids),
            "weight_version": self.weight_version,
            "num_retractions": self.retractions,
        }
        if self._logprobs is not None:
            meta |= self._logprobs.fields(start, stop)
        meta |= {"reasoning_tokens": 0, "completion_tokens": stop, "cached_tokens": self.cached_tokens}
        if final:
            meta["weight_versions"] = self._weight_versions()
        meta["cached_tokens_details"] = (
            {"device": self.cached_tokens, "host": 0} if self.cached_tokens else None
        )
        meta["dp_rank"] = None
        if final:
            meta["e2e_latency"] = self._ended_at - self._began_at
        return meta

    def _short_meta(self, start: int, stop: int) -> dict[str, Any]:
        """Return what is told of a generation that ended in the queue, never begun or retracted."""
        meta: dict[str, Any] = {
            "id": self.rid,
            "finish_reason": self.finish_reason,
            "weight_version": self.weight_version,
            "e2e_latency": self._ended_at - self._began_at,
            "weight_versions": self._weight_versions(),
        }
        if self._logprobs is not None:
            meta |= self._logprobs.fields(start, stop) | {"input_token_logprobs": []}
        meta["completion_tokens"] = stop
        return meta

    def _weight_versions(self) -> list[dict[str, Any]]:
        ends = [*(start for _, start in self._spans[1:]), len(self.output_ids)]
        return [
            {"version": version, "start": start, "end": end}
            for (version, start), end in zip(self._spans, ends, strict=True)
        ]
