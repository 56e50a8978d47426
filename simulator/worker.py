"""The state of a simulated worker: its weights, what it is doing, and whether it is alive."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from .counters import Counters
from .dice import MASK_64, mix
from .faults import Fault, Faults
from .generation import Generation
from .images import look_of, with_image_tokens
from .latency import LatencyModel
from .params import DEFAULT_MAX_NEW_TOKENS, SamplingParams, ValueProblem
from .prefix_cache import PrefixCache
from .requests import GenerateRequest, Prompt
from .sampling import LogprobState
from .scheduler import Scheduler
from .settings import WorkerSettings
from .tokenizer import Tokenizer
from .voice import Voice

RESERVED_TOKENS = 5
"""A prompt must leave this many tokens of the worker's room free."""

MAX_COUNTED_PROMPTS = 100_000
"""Prompts for which calls without a seed are counted; the oldest are forgotten."""


class WorkerDied(Exception):
    """The request kills the worker, as it would kill a real one."""


class Worker:
    """A simulated worker without its HTTP."""

    def __init__(self, settings: WorkerSettings, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.settings = settings
        self.tokenizer = Tokenizer()
        self.counters = Counters()
        self.faults = Faults()
        self.served_model_name = settings.served_model_name
        self.model_path = settings.model_path
        self.weight_version = settings.weight_version
        self.started_at = time.time()
        self.is_draining = False
        self.is_unhealthy = False
        self.death: str | None = None
        self.clock = clock
        self._voice = Voice(
            self.tokenizer,
            accuracy=settings.accuracy,
            long_reply_rate=settings.long_reply_rate,
            split_rate=settings.split_rate,
        )
        self.scheduler = Scheduler(
            latency=LatencyModel(
                prefill_tokens_per_s=settings.prefill_tokens_per_s,
                decode_step_s=settings.decode_step_s,
                decode_step_per_request_s=settings.decode_step_per_request_s,
            ),
            cache=PrefixCache(settings.max_total_tokens),
            slice_s=settings.slice_s,
            max_running=settings.max_running_requests,
            max_queued=settings.max_queued_requests,
            on_end=self._count_end,
            clock=clock,
        )
        self._room = min(settings.context_length, settings.max_total_tokens) - 1
        self._seedless_calls: OrderedDict[int, int] = OrderedDict()
        if settings.fault != "none":
            calls = settings.fault_calls or None
            self.faults.add(Fault(fault=settings.fault, calls=calls, every=settings.fault_every))

    def generations(self, request: GenerateRequest, news: asyncio.Event) -> list[Generation]:
        """Return the generations that a call asks for; `news` tells of all of them.

        Raises: ValueProblem where one is too long; WorkerDied where a prompt has no token or an unknown one.
        """
        prompts_ids = [self._prompt_ids(prompt) for prompt in request.prompts]
        looks = [0 for _ in request.prompts]
        if self.settings.image_tokens:
            looks = [look_of(prompt.images) for prompt in request.prompts]
        for prompt, ids in zip(request.prompts, prompts_ids, strict=True):
            self._check_length(prompt, ids)
        for ids in prompts_ids:
            self._check_ids(ids)
        return [
            Generation(
                prompt,
                ids,
                seed=self._seed(prompt.params, ids) ^ look,
                max_new_tokens=self._max_new_tokens(prompt.params, ids),
                weight_version=self.weight_version,
                voice=self._voice,
                tokenizer=self.tokenizer,
                news=news,
                clock=self.clock,
            )
            for prompt, ids, look in zip(request.prompts, prompts_ids, looks, strict=True)
        ]

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        ids = prompt.input_ids
        if ids is None:
            ids = self.tokenizer.encode(prompt.text or "")
        count = self.settings.image_tokens
        return with_image_tokens(ids, len(prompt.images), count) if count and prompt.images else ids

    def _check_length(self, prompt: Prompt, ids: Sequence[int]) -> None:
        context, count, wanted = self.settings.context_length, len(ids), prompt.params.max_new_tokens
        if count >= context:
            raise ValueProblem(
                f"The input ({count} tokens) is longer than the model's context length ({context} tokens)."
            )
        if wanted is not None and count + wanted > context:
            raise ValueProblem(
                f"Requested token count exceeds the model's maximum context length of {context} tokens. You "
                f"requested a total of {count + wanted} tokens: {count} tokens from the input messages and "
                f"{wanted} tokens for the completion. Please reduce the number of tokens in the input "
                "messages or the completion to fit within the limit."
            )
        if count > self._room - RESERVED_TOKENS:
            raise ValueProblem(
                f"Input length ({count} tokens) exceeds the maximum allowed length "
                f"({self._room - RESERVED_TOKENS} tokens). Use a shorter input or enable "
                "--allow-auto-truncate."
            )
        if prompt.return_logprob and prompt.logprob_start > count:
            raise ValueProblem(
                f"req.logprob_start_len={prompt.logprob_start} is higher than the number of input tokens "
                f"len(req.origin_input_ids)={count}. Please use a smaller logprob_start_len."
            )

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not ids:
            raise WorkerDied("a prompt without a token")
        worst = min(ids) if min(ids) < 0 else max(ids)
        if not 0 <= worst < self.tokenizer.size:
            raise WorkerDied(f"token id {worst} is outside the vocabulary of {self.tokenizer.size}")

    def _max_new_tokens(self, params: SamplingParams, ids: Sequence[int]) -> int:
        wanted = DEFAULT_MAX_NEW_TOKENS if params.max_new_tokens is None else params.max_new_tokens
        return max(0, min(wanted, self._room - len(ids) - 1))

    def _seed(self, params: SamplingParams, ids: Sequence[int]) -> int:
        """Return the seed: as given, 0 where greedy, else another one at each repetition of a prompt."""
        if params.sampling_seed is not None:
            return params.sampling_seed
        if params.greedy:
            return 0
        prompt_hash = LogprobState(ids).value
        count = self._seedless_calls.pop(prompt_hash, 0)
        self._seedless_calls[prompt_hash] = count + 1
        if len(self._seedless_calls) > MAX_COUNTED_PROMPTS:
            self._seedless_calls.popitem(last=False)
        return mix((mix(self.settings.seed & MASK_64) + count + 1) & MASK_64)

    def _count_end(self, generation: Generation) -> None:
        reason = generation.finish_reason or {}
        self.counters.end(generation.rid, aborted=reason.get("type") == "abort")
