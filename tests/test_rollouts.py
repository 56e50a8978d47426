"""The rollout client, the router with its radix tree and simulated workers, as they run together."""

import asyncio
import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from espalier.cli import main
from espalier.rollout import (
    RolloutConfig,
    RolloutDataSourceWithBuffer,
    Sample,
    generate,
    generate_rollout,
    padded_arrays,
)
from espalier.rollout.client import RouterClient
from espalier.rollout.command import run
from tests.engine.workers import EngineWorker
from tests.router.running import router
from tests.simulator.workers import INSTANT, SLOW, eventually, running_worker
from tests.test_exact_tokens import router as witnessed_router
from tests.test_exact_trajectories import PREFILL_TOLERANCE_NATS, VERSIONS, load, prefilled, same_weights
from tests.witness import Witness

RESPONSE_TOKENS = 400
"""Tokens of a response that does not end early: enough to be cut off within."""

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
        source = RolloutDataSourceWithBuffer(config)
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
    limit = 4 if (sample.index or 0) < 4 else RESPONSE_TOKENS
    return await generate(args, sample, {**sampling_params, "max_new_tokens": limit, "ignore_eos": True})


def rolled_out(folder: Path, *flags: str) -> list[Sample]:
    """Run `espalier rollout`; return the samples that it wrote."""
    assert main(["rollout", "--output-dir", str(folder), *flags]) == 0
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return [Sample.from_dict(json.loads(line)) for line in lines]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the workers said of a sample: its tokens; of those sampled, log-probabilities and versions."""

    tokens: list[int]
    log_probs: list[float]
    versions: list[str]


def told_by_workers(sample: Sample, seen: Witness) -> Told:
    """Follow a sample's calls from its last one, whose tokens it ends with, back to its first."""
    ending_with = {
        tuple(seen.read_and_sampled(rid)): rid for rid in seen.said if seen.said[rid]["output_ids"]
    }
    tokens, log_probs, versions = sample.tokens, list[float](), list[str]()
    while rid := ending_with.get(tuple(tokens)):
        log_probs = seen.logprobs(rid) + log_probs
        version = seen.said[rid]["meta_info"]["weight_version"]
        versions = [version] * len(seen.said[rid]["output_ids"]) + versions
        tokens = seen.asked[rid]["input_ids"]
    return Told(tokens=sample.tokens, log_probs=log_probs, versions=versions)


def versions_by_token(sample: Sample) -> list[str]:
    return [span.version for span in sample.weight_spans for _ in range(span.start, span.end)]


async def check_weights(workers: Sequence[EngineWorker], samples: list[Sample], version: str) -> None:
    """Check that the weights which the workers have now are those that sampled the tokens of `version`."""
    read = await prefilled(workers[0], [sample.tokens for sample in samples])
    for sample, computed in zip(samples, read, strict=True):
        assert sample.rollout_log_probs is not None
        response = zip(
            computed[-sample.response_length :],
            sample.rollout_log_probs,
            versions_by_token(sample),
            strict=True,
        )
        of_version = [(one, other) for one, other, its in response if its == version]
        assert of_version
        assert all(
            one is not None and abs(one - other) <= PREFILL_TOLERANCE_NATS for one, other in of_version
        )


def check_arrays(samples: list[Sample], told: list[Told]) -> None:
    """Check that just what the last weights sampled is trained on, with the log-probabilities it had."""
    arrays = padded_arrays([[sample] for sample in samples], RolloutConfig(prompt_data=PROBLEMS))
    assert arrays.log_probs is not None
    for row, its in enumerate(told):
        size, start = len(its.tokens), len(its.tokens) - len(its.log_probs)
        is_trained = [version == VERSIONS[1] for version in its.versions]
        assert arrays.tokens[row, :size].tolist() == its.tokens
        assert arrays.loss_mask[row].nonzero()[0].tolist() == [
            start + position for position, its_turn in enumerate(is_trained) if its_turn
        ]
        for position, log_prob in enumerate(its.log_probs):
            if is_trained[position]:
                assert arrays.log_probs[row, start + position] == log_prob


@pytest.mark.engine
def test_a_rollout_that_is_resumed_after_a_weight_update_is_exact_to_its_training_arrays(
    engine_workers: tuple[EngineWorker, ...], tmp_path: Path
) -> None:
    flags = [
        *("--prompt-data", str(PROBLEMS), "--rm-type", "digit_share", "--n-samples-per-prompt", "1"),
        *("--partial-rollout", "--mask-offpolicy-in-partial-rollout", "--save", str(tmp_path / "state")),
        *("--custom-generate-function-path", f"{__name__}:uneven"),
    ]
    before, after = VERSIONS
    with same_weights(engine_workers) as other_model, witnessed_router(engine_workers) as (url, seen):
        flags += ["--router-url", url]
        step = ["--rollout-batch-size", "4", "--over-sampling-batch-size", "16"]
        finished = rolled_out(tmp_path / "first", *flags, *step)
        update = {"model_path": str(other_model), "weight_version": after}
        httpx.put(f"{url}/fleet/weights", json=update, timeout=60, trust_env=False).raise_for_status()
        goes_on = ["--load", str(tmp_path / "state"), "--num-rollout", "2", "--rollout-batch-size", "12"]
        samples = rolled_out(tmp_path / "second", *flags, *goes_on)
        # One that was cut off before its first token has been at both weights, and has tokens of one.
        resumed = [sample for sample in samples if before in versions_by_token(sample)]
        assert resumed
        asyncio.run(check_weights(engine_workers, samples, after))
        asyncio.run(load(engine_workers, [engine_workers[0].model] * len(engine_workers), before))
        asyncio.run(check_weights(engine_workers, resumed + finished, before))
    assert [len(finished), len(samples)] == [4, 12]
    for sample in finished + samples:
        told = told_by_workers(sample, seen)
        assert len(told.log_probs) == sample.response_length
        assert sample.rollout_log_probs == told.log_probs
        assert versions_by_token(sample) == told.versions
    for sample in resumed:
        assert sample.weight_versions == [before, after]
        assert sample.response_length == RESPONSE_TOKENS
    check_arrays(samples, [told_by_workers(sample, seen) for sample in samples])


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
