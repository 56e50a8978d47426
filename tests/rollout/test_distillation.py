"""On-policy distillation: teachers of every kind, simulated and real."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from espalier.errors import ConfigError, RolloutError
from espalier.rollout import RolloutConfig, Sample, Status
from espalier.rollout.records import encode_group
from espalier.rollout.rewards import async_rm, batched_async_rm
from espalier.sglang import decode_reply
from tests.engine.workers import EngineWorker
from tests.rollout.test_remote_reward import Grader, grader
from tests.router.running import router
from tests.serving import serve
from tests.simulator.workers import INSTANT, running_worker

__all__ = ["grader"]
NAME = "on_policy_distillation"
PROMPT = [1, 283, 279, 223, 18]


def config(url: str, **changes: Any) -> RolloutConfig:
    return RolloutConfig(prompt_data=Path("unused"), custom_rm_path=NAME, rm_url=url, **changes)


def sampled_by(url: str, prompt: list[int] = PROMPT, tokens: int = 24) -> Sample:
    """Let the worker at `url` sample a response."""
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True},
        "return_logprob": True,
    }
    reply = decode_reply(httpx.post(f"{url}/generate", json=body, timeout=60, trust_env=False).content)
    sample = Sample(index=0, tokens=list(prompt), status=Status.PENDING)
    entries = reply.meta_info.output_token_logprobs or []
    sample.append_response_tokens(
        tokens=[token for _, token, _ in entries],
        log_probs=[log_prob for log_prob, _, _ in entries if log_prob is not None],
        meta_info=reply.meta_info,
    )
    return sample


def test_a_teacher_with_the_students_weights_finds_the_same() -> None:
    with running_worker(**INSTANT) as student, running_worker(weight_version="9", **INSTANT) as teacher:
        sample = sampled_by(str(student.base_url).rstrip("/"))
        assert asyncio.run(async_rm(config(str(student.base_url)), sample)) == 0.0
        same = sample.teacher_log_probs
        assert (
            asyncio.run(async_rm(config(f"{str(teacher.base_url).rstrip(chr(47))}/generate"), sample)) == 0.0
        )
    assert same == sample.rollout_log_probs
    assert sample.teacher_log_probs is not None
    assert len(sample.teacher_log_probs) == sample.response_length
    assert sample.teacher_log_probs != same
    line = msgspec.json.decode(encode_group([sample], 0))
    assert line["teacher_log_probs"] == sample.teacher_log_probs


def test_a_batch_goes_to_several_teachers_through_a_router_and_one_may_die() -> None:
    with running_worker(**INSTANT) as one, running_worker(**INSTANT) as other:
        urls = [str(worker.base_url).rstrip("/") for worker in (one, other)]
        samples = [sampled_by(urls[0], [1, 300 + number]) for number in range(40)]
        other.post("/simulator/faults", json={"fault": "die_mid_reply"})
        with router(*urls, middleware=("radix_tree",)) as client:
            rewards = asyncio.run(batched_async_rm(config(str(client.base_url)), samples))
    assert rewards == [0.0] * 40
    assert [sample.teacher_log_probs for sample in samples] == [
        sample.rollout_log_probs for sample in samples
    ]


def meta(*entries: tuple[float | None, int | None]) -> bytes:
    told = [[log_prob, token, None] for log_prob, token in entries]
    return msgspec.json.encode({"meta_info": {"input_token_logprobs": told}})


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (meta((None, 5), (-1.0, 7)), "told 1 log-probabilities for 2 response tokens"),
        (meta((None, 5), (-1.0, 7), (-1.0, 9)), "read token 9 where the response has 8, at response token 1"),
        (meta((None, 5), (-1.0, 7), (None, 8)), "no finite log-probability of response token 1"),
        (b'{"meta_info": {}}', "answered no log-probabilities"),
        (b"nonsense", "answered no log-probabilities"),
    ],
)
def test_a_teacher_that_tells_something_else_fails_the_sample(
    grader: Grader, reply: bytes, message: str
) -> None:
    sample = Sample(tokens=[5, 7, 8], response_length=2)
    grader.answers = [(200, reply)]
    with serve(grader) as url, pytest.raises(RolloutError, match=message):
        asyncio.run(async_rm(config(url), sample))
    assert sample.teacher_log_probs is None


def test_a_teacher_is_asked_for_the_response_alone_and_again_when_it_is_busy(grader: Grader) -> None:
    sample = Sample(tokens=[4, 5, 7, 8], response_length=2)
    grader.answers = [(503, b""), (200, meta((None, 5), (-1.0, 7), (-0.5, 8)))]
    with serve(grader) as url:
        asyncio.run(async_rm(config(url), sample))
    assert sample.teacher_log_probs == [-1.0, -0.5]
    assert len(grader.asked) == 2
    asked = grader.asked[1]
    assert (asked["input_ids"], asked["logprob_start_len"]) == ([4, 5, 7, 8], 1)
    assert asked["sampling_params"]["max_new_tokens"] == 0


def test_a_response_that_is_empty_needs_no_teacher_and_one_without_prompt_has_none() -> None:
    sample = Sample(tokens=[4], response_length=0)
    assert asyncio.run(async_rm(config("http://127.0.0.1:9"), sample)) == 0.0
    assert sample.teacher_log_probs == []
    with pytest.raises(RolloutError, match="needs a prompt"):
        asyncio.run(async_rm(config("http://127.0.0.1:9"), Sample(tokens=[4], response_length=1)))


@pytest.mark.parametrize("setting", ["rm_type", "custom_rm_path"])
def test_without_a_teacher_nothing_begins(setting: str) -> None:
    make: Callable[..., RolloutConfig] = RolloutConfig
    with pytest.raises(ConfigError, match=f"{NAME} needs --rm-url"):
        make(prompt_data=Path("unused"), **{setting: NAME})


@pytest.mark.engine
def test_a_real_teacher_agrees_with_itself_and_not_with_other_weights(
    engine_workers: tuple[EngineWorker, ...],
) -> None:
    student, teacher = engine_workers
    tokenized = httpx.post(f"{student.url}/tokenize", json={"prompt": "What is 17 + 25?"}, trust_env=False)
    sample = sampled_by(student.url, tokenized.json()["tokens"])
    asyncio.run(async_rm(config(student.url), sample))
    assert sample.teacher_log_probs == pytest.approx(sample.rollout_log_probs, abs=0.02)
    asyncio.run(async_rm(config(teacher.url), sample))
    assert sample.teacher_log_probs is not None
    assert len(sample.teacher_log_probs) == sample.response_length
    assert sample.teacher_log_probs != pytest.approx(sample.rollout_log_probs, abs=0.02)
