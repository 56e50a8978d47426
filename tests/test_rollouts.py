"""The rollout client, the router with its radix tree and simulated workers, as they run together."""

import asyncio
import contextlib
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from espalier.rollout import RolloutConfig, Sample, generate, generate_rollout
from espalier.rollout.client import RouterClient
from espalier.rollout.command import run
from tests.engine.workers import EngineWorker
from tests.rollout.test_leftovers import BufferedSource
from tests.router.running import router
from tests.simulator.workers import INSTANT, SLOW, eventually, running_worker
from tests.test_exact_tokens import router as witnessed_router

PROBLEMS = Path(__file__).parent.parent / "examples" / "data" / "arithmetic.jsonl"


@contextlib.contextmanager
def fleet(**settings: Any) -> Iterator[tuple[str, list[httpx.Client]]]:
    """Run two simulated workers behind a router; yields its URL and clients of the workers."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(running_worker(**settings, seed=seed)) for seed in range(2)]
        urls = [str(worker.base_url).rstrip("/") for worker in workers]
        client = stack.enter_context(router(*urls, middleware=("radix_tree",)))
        yield str(client.base_url).rstrip("/"), workers


def config_of(url: str, folder: Path, **changes: Any) -> RolloutConfig:
    settings: dict[str, Any] = {
        "router_url": url,
        "prompt_data": PROBLEMS,
        "output_dir": folder,
        "rollout_batch_size": 4,
        "n_samples_per_prompt": 4,
        "rm_type": "math",
    }
    return RolloutConfig(**{**settings, **changes})


def test_same_seed_same_samples_byte_for_byte(tmp_path: Path) -> None:
    def samples(name: str, seed: int) -> bytes:
        with fleet(**INSTANT) as (url, _):
            config = config_of(
                url,
                tmp_path / name,
                num_rollout=2,
                over_sampling_batch_size=6,
                dynamic_sampling_filter_path="check_reward_nonzero_std",
                rollout_deterministic=True,
                rollout_shuffle=True,
                rollout_seed=seed,
            )
            assert run(config, console=Console(file=io.StringIO())) == 0
        return (tmp_path / name / "samples.jsonl").read_bytes()

    first = samples("first", 1)
    assert first.count(b"\n") == 2 * 4 * 4
    assert samples("second", 1) == first
    assert samples("third", 2) != first


def test_partial_rollouts_keep_every_token_over_a_weight_update(tmp_path: Path) -> None:
    with fleet(**SLOW, long_reply_rate=0.5) as (url, workers):
        config = config_of(
            url,
            tmp_path,
            partial_rollout=True,
            n_samples_per_prompt=1,
            over_sampling_batch_size=24,
            rollout_max_response_len=400,
        )
        source = BufferedSource(config)
        generate_rollout(config, 0, source)
        begun = {
            sample.index: (list(sample.tokens), list(sample.rollout_log_probs or []))
            for group in source.buffer
            for sample in group
            if sample.status is Sample.Status.ABORTED and sample.response_length
        }
        assert begun
        for worker in workers:
            worker.post("/update_weight_version", json={"new_version": "2"}).raise_for_status()
        everything = dataclasses.replace(
            config, rollout_batch_size=len(source.buffer), over_sampling_batch_size=None
        )
        output = generate_rollout(everything, 1, source)
    resumed = [sample for group in output.samples for sample in group if sample.index in begun]
    assert len(resumed) == len(begun)
    for sample in resumed:
        tokens, log_probs = begun[sample.index]
        assert sample.rollout_log_probs is not None
        assert sample.tokens[: len(tokens)] == tokens
        assert sample.rollout_log_probs[: len(log_probs)] == log_probs
        assert len(sample.rollout_log_probs) == sample.response_length
        assert sample.weight_versions[0] == "default"
        assert sample.weight_versions[-1] == "2"
        spans = [(span.version, span.start, span.end) for span in sample.weight_spans]
        assert spans[0] == ("default", 0, len(log_probs))
        assert spans[-1][2] == sample.response_length
        assert sample.metadata["start_rollout_id"] == 0


async def uneven(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """Let the first four samples end early, and so the others be cut off."""
    limit = 4 if (sample.index or 0) < 4 else 400
    return await generate(args, sample, {**sampling_params, "max_new_tokens": limit, "ignore_eos": True})


@pytest.mark.engine
def test_partial_rollouts_on_real_workers_read_exactly_what_was_sampled_before(
    engine_workers: tuple[EngineWorker, ...], tmp_path: Path
) -> None:
    with witnessed_router(engine_workers) as (url, seen):
        config = config_of(
            url,
            tmp_path,
            rm_type="digit_share",
            partial_rollout=True,
            mask_offpolicy_in_partial_rollout=True,
            n_samples_per_prompt=1,
            over_sampling_batch_size=16,
            custom_generate_function_path=f"{__name__}:uneven",
        )
        source = BufferedSource(config)
        generate_rollout(config, 0, source)
        begun = {
            sample.index: (list(sample.tokens), sample.response_length)
            for group in source.buffer
            for sample in group
            if sample.status is Sample.Status.ABORTED and sample.response_length
        }
        assert begun
        for worker in engine_workers:
            reply = httpx.post(f"{worker.url}/update_weight_version", json={"new_version": "after"})
            reply.raise_for_status()
        everything = dataclasses.replace(
            config, rollout_batch_size=len(source.buffer), over_sampling_batch_size=None
        )
        output = generate_rollout(everything, 1, source)
    resumed = [sample for group in output.samples for sample in group if sample.index in begun]
    assert len(resumed) == len(begun)
    read_and_sampled = {tuple(seen.read_and_sampled(rid)) for rid in seen.said}
    for sample in resumed:
        tokens, count = begun[sample.index]
        assert sample.tokens[: len(tokens)] == tokens
        assert tuple(tokens) in read_and_sampled
        assert tuple(sample.tokens) in read_and_sampled
        assert sample.response_length == 400
        assert sample.loss_mask == [0] * count + [1] * (400 - count)
        assert sample.weight_versions[0] != sample.weight_versions[-1] == "after"


def test_a_call_that_is_cancelled_ends_on_its_worker() -> None:
    payload = {
        "text": "What is 1 + 1?",
        "rid": "a-call-that-is-given-up",
        "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True},
    }

    async def cancelled(url: str, workers: list[httpx.Client]) -> None:
        async with RouterClient(url, max_connections=4, request_timeout_s=60.0) as client:
            running = asyncio.create_task(client.generate(payload))
            await asyncio.to_thread(eventually, lambda: sum(map(loads, workers)) == 1)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await asyncio.to_thread(eventually, lambda: sum(map(loads, workers)) == 0)

    with fleet(**SLOW) as (url, workers):
        asyncio.run(cancelled(url, workers))


def loads(worker: httpx.Client) -> int:
    """Return how many requests a worker has."""
    found: int = worker.get("/v1/loads").json()["loads"][0]["num_running_reqs"]
    return found
