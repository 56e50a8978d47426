"""A stand-in for slime's client loop, written after what is known of it: slime itself is not run.

What it has of slime's: one `httpx.AsyncClient` without timeouts whose pool has as many connections as calls
may be in flight, a semaphore of that size, one task a sample and one a group, the prompt tokenised for each
sample, the reply parsed with `response.json()`, token ids and log-probabilities taken out of the triples and
added to the sample's lists, an async reward, and the reward-spread filter on each group. What it lacks makes
it faster: no retries, no torch in the filter, no trace, no progress bar.
"""

import asyncio
import random
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_new_tokens": 1024, "no_stop_trim": True}


@dataclass(kw_only=True)
class LoopSample:
    """What such a loop keeps of a sample."""

    prompt: str
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    rollout_log_probs: list[float] = field(default_factory=list)
    weight_versions: list[str] = field(default_factory=list)
    status: str = "pending"
    reward: float | None = None


class SlimeLoop:
    """Generates, grades and filters groups, all submitted at once."""

    def __init__(self, url: str, tokenizer: Tokenizer, in_flight: int, client: httpx.AsyncClient) -> None:
        self._url = f"{url}/generate"
        self._tokenizer = tokenizer
        self._semaphore = asyncio.Semaphore(in_flight)
        self._client = client

    async def run(self, prompts: list[str], groups: int, group_size: int) -> list[LoopSample]:
        """Return the samples of `groups` groups, those included that the filter rejects."""
        tasks = [
            asyncio.create_task(self._group(prompts[number % len(prompts)], group_size))
            for number in range(groups)
        ]
        samples: list[LoopSample] = []
        kept: list[list[LoopSample]] = []
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                group = task.result()
                samples += group
                if statistics.pstdev(sample.reward or 0.0 for sample in group) > 0:
                    kept.append(group)
        return samples

    async def _group(self, prompt: str, group_size: int) -> list[LoopSample]:
        samples = [LoopSample(prompt=prompt) for _ in range(group_size)]
        return await asyncio.gather(*(self._sample(sample) for sample in samples))

    async def _sample(self, sample: LoopSample) -> LoopSample:
        async with self._semaphore:
            prompt_ids = self._tokenizer.encode(sample.prompt).ids
            payload = {"sampling_params": SAMPLING, "return_logprob": True, "input_ids": prompt_ids}
            output = await self._post(payload)
            if not sample.tokens:
                sample.tokens = prompt_ids
            meta = output["meta_info"]
            new_tokens = [item[1] for item in meta["output_token_logprobs"]]
            new_log_probs = [item[0] for item in meta["output_token_logprobs"]]
            sample.tokens = sample.tokens + new_tokens
            sample.response_length += len(new_tokens)
            sample.response += output["text"]
            sample.rollout_log_probs += new_log_probs
            sample.weight_versions.append(meta["weight_version"])
            sample.status = {"length": "truncated", "stop": "completed"}[meta["finish_reason"]["type"]]
        sample.reward = await self._reward()
        return sample

    async def _post(self, payload: dict[str, Any]) -> Any:
        response = await self._client.post(self._url, json=payload)
        response.raise_for_status()
        return response.json()

    async def _reward(self) -> float:
        return float(random.randint(0, 1))


def run_slime_loop(
    url: str, *, prompts: list[str], tokenizer: Path, groups: int, group_size: int, in_flight: int
) -> list[LoopSample]:
    """Run the loop to its end and return its samples."""

    async def run() -> list[LoopSample]:
        limits = httpx.Limits(max_connections=in_flight)
        async with httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(None), trust_env=False) as client:
            loop = SlimeLoop(url, Tokenizer.from_file(str(tokenizer)), in_flight, client)
            return await loop.run(prompts, groups, group_size)

    return asyncio.run(run())
