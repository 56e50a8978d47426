"""What comes back through the router is what real SGLang workers read and sampled, token by token."""

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from espalier.rollout import generate_rollout
from espalier.rollout.config import RolloutConfig
from espalier.rollout.data_source import RolloutDataSource
from espalier.router.app import create_app
from espalier.router.settings import RouterSettings
from tests import witness
from tests.engine.workers import EngineWorker
from tests.serving import serve
from tests.witness import Witness

pytestmark = pytest.mark.engine

CONCURRENT = 64
GREEDY = {"temperature": 0, "max_new_tokens": 24}


@contextlib.contextmanager
def router(workers: Sequence[EngineWorker]) -> Iterator[tuple[str, Witness]]:
    settings = RouterSettings(
        worker_urls=tuple(worker.url for worker in workers),
        middleware=("radix_tree", "tests.witness:Witness"),
    )
    app = create_app(settings)
    with serve(app) as url:
        yield url, witness.latest[-1]


def chat(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def post(url: str, path: str, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Post all bodies at once; return the replies in order."""

    async def run() -> list[dict[str, Any]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=100, limits=limits) as client:

            async def one(body: dict[str, Any]) -> dict[str, Any]:
                reply = await client.post(path, json=body)
                assert reply.status_code == 200, reply.text
                decoded: dict[str, Any] = reply.json()
                return decoded

            return await asyncio.gather(*(one(body) for body in bodies))

    return asyncio.run(run())


def test_rollout_samples_are_exactly_what_the_workers_read_and_sampled(
    engine_workers: tuple[EngineWorker, ...], tmp_path: Path
) -> None:
    data = tmp_path / "problems.jsonl"
    data.write_text(
        "".join(f'{{"prompt": "Problem {n}: {n} + {n}?", "label": "{2 * n}"}}\n' for n in range(8))
    )
    with router(engine_workers) as (url, seen):
        config = RolloutConfig(
            router_url=url,
            prompt_data=data,
            output_dir=tmp_path / "out",
            rollout_batch_size=8,
            n_samples_per_prompt=CONCURRENT // 8,
            rollout_max_response_len=48,
            rm_type="digit_share",
        )
        output = generate_rollout(config, 0, RolloutDataSource(config))
    samples = [sample for group in output.samples for sample in group]
    assert len(samples) == CONCURRENT
    by_tokens = {
        (tuple(seen.read_and_sampled(rid)), tuple(seen.logprobs(rid))): seen.said[rid] for rid in seen.said
    }
    assert len(by_tokens) >= CONCURRENT
    for sample in samples:
        assert sample.rollout_log_probs is not None
        said = by_tokens[tuple(sample.tokens), tuple(sample.rollout_log_probs)]
        assert sample.response == said["text"]
        assert sample.response_length == len(said["output_ids"])
        assert sample.loss_mask == [1] * sample.response_length
        assert sample.weight_versions == [said["meta_info"]["weight_version"]]


def test_tree_gives_back_every_reply_by_id_and_by_text(engine_workers: tuple[EngineWorker, ...]) -> None:
    prompts = [chat(f"Question {number // 4}?") for number in range(CONCURRENT)]
    asked = [
        {
            "text": prompt,
            "sampling_params": {"temperature": 1.0, "max_new_tokens": 32},
            "return_logprob": True,
            "rid": f"call-{number}-",
        }
        for number, prompt in enumerate(prompts)
    ]
    with router(engine_workers) as (url, seen):
        replies = post(url, "/generate", asked)
        texts = [prompt + reply["text"] for prompt, reply in zip(prompts, replies, strict=True)]
        rids = [reply["meta_info"]["id"] for reply in replies]
        assert rids == [body["rid"] for body in asked]
        by_id = post(
            url,
            "/retrieve_from_text",
            [{"text": text, "return_logp": True, "rid": rid} for text, rid in zip(texts, rids, strict=True)],
        )
        by_text = post(url, "/retrieve_from_text", [{"text": text, "return_logp": True} for text in texts])
    for reply, rid, text, exact, found in zip(replies, rids, texts, by_id, by_text, strict=True):
        sampled = len(reply["output_ids"])
        assert exact["tokens"] == seen.read_and_sampled(rid)
        assert exact["tokens"][-sampled:] == reply["output_ids"]
        assert exact["rollout_logp"][-sampled:] == seen.logprobs(rid)
        assert exact["loss_mask"] == [0] * (len(exact["tokens"]) - sampled) + [1] * sampled
        # Siblings that said the same text share it: what the text brings back is one of them, whole.
        same_text = [other for other, its_text in zip(rids, texts, strict=True) if its_text == text]
        assert (found["tokens"], found["rollout_logp"][-sum(found["loss_mask"]) :]) in [
            (seen.read_and_sampled(other), seen.logprobs(other)) for other in same_text
        ]


def test_prompt_is_tokenised_as_the_worker_does_it(engine_workers: tuple[EngineWorker, ...]) -> None:
    prompts = [chat("What is 17 + 25?"), "plain text", "naïve café 数字 🙂\n\n  def f():\t", "<|im_end|>x"]
    worker = engine_workers[0]
    with router([worker]) as (url, seen):
        for prompt in prompts:
            (reply,) = post(url, "/generate", [{"text": prompt, "sampling_params": GREEDY}])
            (told,) = post(worker.url, "/tokenize", [{"model": "tiny", "prompt": prompt}])
            assert seen.asked[reply["meta_info"]["id"]]["input_ids"] == told["tokens"]


def test_greedy_output_equals_that_of_the_worker_asked_directly(
    engine_workers: tuple[EngineWorker, ...],
) -> None:
    bodies = [{"text": chat(f"Count to {n}."), "sampling_params": GREEDY} for n in range(16)]
    for worker in engine_workers:
        direct = post(worker.url, "/generate", bodies)
        with router([worker]) as (url, _):
            through = post(url, "/generate", bodies)
        for one, other in zip(through, direct, strict=True):
            assert (one["text"], one["output_ids"]) == (other["text"], other["output_ids"])
            assert "output_token_logprobs" not in one["meta_info"]
            assert one["meta_info"].keys() == other["meta_info"].keys()


def test_next_turn_reads_the_tokens_that_were_sampled(engine_workers: tuple[EngineWorker, ...]) -> None:
    sampling = {"temperature": 1.0, "max_new_tokens": 20}
    with router(engine_workers) as (url, seen):
        prompts = [chat(f"Turn one, sample {number}.") for number in range(16)]
        replies = post(
            url, "/generate", [{"text": prompt, "sampling_params": sampling} for prompt in prompts]
        )
        follow_ups = [
            f"{prompt}{reply['text']}<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n"
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
        seconds = post(
            url, "/generate", [{"text": prompt, "sampling_params": sampling} for prompt in follow_ups]
        )
    for first, second in zip(replies, seconds, strict=True):
        known = seen.read_and_sampled(first["meta_info"]["id"])
        read = seen.asked[second["meta_info"]["id"]]["input_ids"]
        assert read[: len(known)] == known
        assert len(read) > len(known)


def test_requests_that_would_kill_a_worker_are_refused_by_the_router(
    engine_workers: tuple[EngineWorker, ...],
) -> None:
    with router(engine_workers) as (url, seen), httpx.Client(base_url=url, trust_env=False) as client:
        deadly: list[dict[str, Any]] = [{"text": ""}, {"input_ids": []}, {"input_ids": [-1]}]
        for body in [*deadly, {"input_ids": [1, 999_999]}]:
            reply = client.post("/generate", json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_request")
        assert not seen.said
        post(url, "/generate", [{"text": "still alive", "sampling_params": GREEDY}])


def test_streams_and_chat_completions_pass_through(engine_workers: tuple[EngineWorker, ...]) -> None:
    worker = engine_workers[0]
    streamed = {"text": chat("Tell me more."), "sampling_params": GREEDY, "stream": True}
    messages = [{"role": "user", "content": "Tell me more."}]
    asked = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 16}
    with router([worker]) as (url, _):
        (direct,) = post(worker.url, "/generate", [{**streamed, "stream": False}])
        with httpx.stream("POST", f"{url}/generate", json=streamed, trust_env=False, timeout=60) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            events = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        (said,) = post(url, "/v1/chat/completions", [asked])
        (said_directly,) = post(worker.url, "/v1/chat/completions", [asked])
    assert events[-1] == "[DONE]"
    assert len(events) > 2
    assert json.loads(events[-2])["output_ids"] == direct["output_ids"]
    assert said["choices"] == said_directly["choices"]
