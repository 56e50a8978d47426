"""Prompts with images: from a dataset through the router to simulated workers that read images, and back."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from espalier.errors import RolloutError
from espalier.rollout import (
    RolloutConfig,
    RolloutDataSource,
    RolloutDataSourceWithBuffer,
    RolloutFnTrainOutput,
    Sample,
    Status,
    generate,
    generate_rollout,
)
from espalier.rollout.tokenizer import load_tokenizer
from tests.rollout.test_images import checkpoint, png, uri
from tests.router.running import router
from tests.simulator.workers import INSTANT, running_worker

IMAGE_TOKENS = 16
PROCESSOR = f"{__name__}:processor"


@contextlib.contextmanager
def fleet(**settings: Any) -> Iterator[tuple[httpx.Client, list[httpx.Client]]]:
    """Run two workers that read images behind a router with the tree; yields a client of each."""
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(running_worker(**{"image_tokens": IMAGE_TOKENS, "seed": 1, **settings}))
            for _ in range(2)
        ]
        urls = [str(worker.base_url).rstrip("/") for worker in workers]
        yield stack.enter_context(router(*urls, middleware=("radix_tree",))), workers


def config_of(client: httpx.Client, folder: Path, count: int = 6, **changes: Any) -> RolloutConfig:
    (folder / "a.png").write_bytes(png(1, size=64))
    path = folder / "rows.jsonl"
    rows = [
        {"prompt": f"<image>What is {n} + <image>1?", "images": ["a.png", uri(png(n))], "label": str(n + 1)}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "router_url": str(client.base_url).rstrip("/"),
        "hf_checkpoint": checkpoint(folder),
        "apply_chat_template": True,
        "multimodal_keys": '{"image": "images"}',
        "rollout_batch_size": count,
        "n_samples_per_prompt": 2,
        "rm_type": "random",
        "rollout_deterministic": True,
    }
    return RolloutConfig(prompt_data=path, output_dir=folder, **{**settings, **changes})


def processor(args: RolloutConfig, text: str, images: list[Any]) -> dict[str, Any]:
    """Does what a model's own processor does: more tokens for each image, and its pixels."""
    assert args.hf_checkpoint is not None
    ids: list[int] = []
    for token in load_tokenizer(args.hf_checkpoint).encode(text):
        ids += [token] * (IMAGE_TOKENS if token == 0 else 1)
    pixels = np.concatenate([np.asarray(image, np.float32).reshape(-1, 3) for image in images])
    return {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, len(ids))),
        "pixel_values": pixels,
    }


def wrong_processor(args: RolloutConfig, text: str, images: list[Any]) -> dict[str, Any]:
    found = processor(args, text, images)
    return {**found, "input_ids": found["input_ids"][:, 1:]}


def rolled_out(args: RolloutConfig) -> list[Sample]:
    output = generate_rollout(args, 0, RolloutDataSource(args))
    assert isinstance(output, RolloutFnTrainOutput)
    return [sample for group in output.samples for sample in group]


def spoken(tokens: list[int]) -> list[float]:
    """The log-probability of each token but the first, told by a worker that takes all of them as text."""
    body = {
        "input_ids": tokens,
        "sampling_params": {"max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    with running_worker(**INSTANT) as worker:
        meta = worker.post("/generate", json=body).json()["meta_info"]
    return [entry[0] for entry in meta["input_token_logprobs"][1:]]


def test_with_a_processor_a_sample_has_the_tokens_that_the_worker_read(tmp_path: Path) -> None:
    with fleet(**INSTANT) as (client, _):
        samples = rolled_out(config_of(client, tmp_path, multimodal_processor_path=PROCESSOR))
        stats = client.get("/radix_tree/stats").json()
    for sample in samples:
        assert sample.status in (Status.COMPLETED, Status.TRUNCATED)
        assert sample.tokens[: -sample.response_length].count(0) == 2 * IMAGE_TOKENS
        assert sample.multimodal_train_inputs is not None
        assert set(sample.multimodal_train_inputs) == {"pixel_values"}
        assert sample.multimodal_train_inputs["pixel_values"].shape == (64 * 64 + 4, 3)
    assert spoken(samples[0].tokens)[-samples[0].response_length :] == samples[0].rollout_log_probs
    assert stats["passed_through_multimodal_total"] == len(samples)


def test_without_a_processor_a_sample_has_the_tokens_that_were_sent(tmp_path: Path) -> None:
    with fleet(**INSTANT) as (client, _):
        args = config_of(client, tmp_path)
        samples = rolled_out(args)
    for sample in samples:
        assert sample.tokens[: -sample.response_length].count(0) == 2
        assert sample.multimodal_train_inputs is None


def test_other_images_are_seen_as_others(tmp_path: Path) -> None:
    prompts = {"text": "<|endoftext|>Tell.", "sampling_params": {"temperature": 0}}
    with fleet(**INSTANT) as (client, _):
        one, same, other = (
            client.post("/generate", json={**prompts, "image_data": uri(png(red))}).json()
            for red in (1, 1, 2)
        )
    assert one["output_ids"] == same["output_ids"] != other["output_ids"]
    assert one["meta_info"]["prompt_tokens"] == 3 + IMAGE_TOKENS


def test_a_call_with_images_leaves_no_trace_in_the_tree(tmp_path: Path) -> None:
    text = "<|endoftext|>Tell."
    body: dict[str, Any] = {"text": text, "sampling_params": {"max_new_tokens": 8}, "return_logprob": True}
    with fleet(**INSTANT) as (client, workers):
        images = [uri(png(1)), "https://example.com/a.png"]
        bodies = [{**body, "image_data": image, "rid": f"seen-{at}"} for at, image in enumerate(images)]
        replies = [client.post("/generate", json=each).json() for each in bodies]
        direct = [workers[0].post("/generate", json=each).json() for each in bodies]
        assert [each["output_ids"] for each in replies] != [replies[0]["output_ids"]] * 2
        for through, straight in zip(replies, direct, strict=True):
            assert set(through["meta_info"]) == set(straight["meta_info"])
        for at, reply in enumerate(replies):
            assert client.get(f"/trajectories/seen-{at}").status_code == 404
            found = client.post("/retrieve_from_text", json={"text": text + reply["text"]}).json()
            assert found["matched_tokens"] == 0


def test_a_sample_that_was_cut_off_goes_on_with_its_images(tmp_path: Path) -> None:
    async def in_two(args: RolloutConfig, sample: Sample) -> list[int]:
        await generate(args, sample, {"max_new_tokens": 5, "sampling_seed": 3, "ignore_eos": True})
        assert sample.status is Status.TRUNCATED
        half = list(sample.tokens)
        sample.status = Status.ABORTED
        await generate(args, sample, {"max_new_tokens": 9, "sampling_seed": 3, "ignore_eos": True})
        assert sample.tokens[: len(half)] == half
        return sample.tokens

    with fleet(**INSTANT) as (client, _):
        args = config_of(client, tmp_path, multimodal_processor_path=PROCESSOR)
        sample = RolloutDataSource(args).get_samples(1)[0][0]
        tokens = asyncio.run(in_two(args, sample))
    assert sample.response_length == 9
    assert tokens.count(0) == 2 * IMAGE_TOKENS
    assert spoken(tokens)[-9:] == sample.rollout_log_probs


def test_a_buffered_sample_keeps_its_images_and_makes_their_inputs_anew(tmp_path: Path) -> None:
    with fleet(**INSTANT) as (client, _):
        args = config_of(client, tmp_path, multimodal_processor_path=PROCESSOR, save=tmp_path, load=tmp_path)
        source = RolloutDataSourceWithBuffer(args)
        group = source.get_samples(1)[0]
        for sample in group:
            asyncio.run(generate(args, sample, {"max_new_tokens": 5, "ignore_eos": True}))
            sample.status = Status.ABORTED
        source.add_samples([group])
        source.save(0)
        again = RolloutDataSourceWithBuffer(args)
        assert again.load() == 0
        back = again.get_samples(1)[0][0]
        asyncio.run(generate(args, back, {"max_new_tokens": 9, "ignore_eos": True}))
    assert back.multimodal_inputs == group[0].multimodal_inputs
    assert back.tokens[: len(group[0].tokens)] == group[0].tokens
    made, before = back.multimodal_train_inputs, group[0].multimodal_train_inputs
    assert made is not None
    assert before is not None
    assert isinstance(made["pixel_values"], np.ndarray)
    assert np.array_equal(made["pixel_values"], before["pixel_values"])


def test_a_processor_that_makes_other_tokens_than_the_worker_fails_its_samples(tmp_path: Path) -> None:
    with fleet(**INSTANT) as (client, _):
        args = config_of(client, tmp_path, multimodal_processor_path=f"{__name__}:wrong_processor")
        sample = RolloutDataSource(args).get_samples(1)[0][0]
        with pytest.raises(RolloutError, match="prompt tokens, though"):
            asyncio.run(generate(args, sample, {"max_new_tokens": 5}))
    assert (sample.tokens, sample.multimodal_train_inputs) == ([], None)


def test_a_file_that_vanishes_fails_its_sample_alone(tmp_path: Path) -> None:
    with fleet(**INSTANT) as (client, _):
        args = config_of(client, tmp_path)
        source = RolloutDataSource(args)
        (tmp_path / "a.png").unlink()
        sample = source.get_samples(1)[0][0]
        with pytest.raises(RolloutError, match="No such file"):
            asyncio.run(generate(args, sample, {"max_new_tokens": 5}))


def test_large_images_pass_and_a_dead_worker_costs_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (1200, 1200, 3), np.uint8)
    with fleet(**INSTANT) as (client, workers):
        args = config_of(client, tmp_path, count=12, multimodal_processor_path=PROCESSOR)
        PIL.Image.fromarray(noise).save(tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 4_000_000
        workers[0].post("/simulator/faults", json={"fault": "die_mid_reply"})
        samples = rolled_out(args)
    assert len(samples) == 24
    assert all(sample.response_length for sample in samples)
