import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.rollout import RolloutConfig, Sample, Status, generate_and_rm
from tests.rollout.fake_router import FakeRouter, Generation, Scripted, token_of
from tests.rollout.test_events import event
from tests.simulator.workers import INSTANT
from tests.test_rollouts import config_of, fleet

MakeConfig = Callable[..., RolloutConfig]


def streamed(config: RolloutConfig, sample: Sample) -> Sample:
    result = asyncio.run(generate_and_rm(config, sample, config.sampling_params()))
    assert isinstance(result, Sample)
    return result


@pytest.mark.parametrize("incremental", [True, False])
def test_a_stream_gives_the_sample_that_a_plain_call_gives(tmp_path: Path, incremental: bool) -> None:
    with fleet(**INSTANT, incremental_streaming_output=incremental) as (url, workers):
        asked = {"prompt": "What is 74 * 3?", "add_special_tokens": False}
        ids = workers[0].post("/tokenize", json=asked).raise_for_status().json()["tokens"]

        def sample(**changes: str) -> Sample:
            config = config_of(url, tmp_path, rollout_deterministic=True, rollout_temperature=0.0, **changes)
            return streamed(config, Sample(index=3, prompt="What is 74 * 3?", label="222", tokens=list(ids)))

        plain, stream = sample(), sample(custom_generate_function_path="streaming")
    assert stream.status in (Status.COMPLETED, Status.TRUNCATED)
    assert stream.response_length > 1
    assert (stream.tokens, stream.rollout_log_probs) == (plain.tokens, plain.rollout_log_probs)
    assert (stream.response, stream.status, stream.reward) == (plain.response, plain.status, plain.reward)
    assert stream.weight_spans == plain.weight_spans


def events_body(*events: bytes) -> str:
    return "".join(f"data: {each.decode()}\n\n" for each in events)


def test_tokens_that_came_before_a_stream_broke_are_kept_and_resumed(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    prompt = [1, 2]
    short = {"content-type": "text/event-stream", "content-length": "100000"}
    fake.scripted["/generate"] = [Scripted(200, events_body(event(0, 1), event(0, 2)), short)]
    sample = Sample(index=0, prompt="user question ?", label="4", tokens=list(prompt))
    config = make_config(custom_generate_function_path="streaming", request_timeout_s=3.0)
    sample = streamed(config, sample)
    assert (sample.status, sample.reward) == (Status.ABORTED, None)
    assert sample.tokens == [*prompt, 11, 12]
    assert sample.response == "One two"
    fake.generation = lambda _: Generation([" \\boxed{4}"])
    sample = streamed(make_config(), sample)
    assert fake.requests[-1]["input_ids"] == [*prompt, 11, 12]
    assert sample.tokens == [*prompt, 11, 12, token_of(" \\boxed{4}"), 2]
    assert sample.reward == 1.0


@pytest.mark.parametrize("incremental", [True, False])
def test_of_a_text_prompt_the_router_tells_the_tokens_of_a_stream(tmp_path: Path, incremental: bool) -> None:
    with fleet(**INSTANT, incremental_streaming_output=incremental) as (url, workers):
        asked = {"prompt": "What is 74 * 3?", "add_special_tokens": False}
        ids = workers[0].post("/tokenize", json=asked).raise_for_status().json()["tokens"]

        def sample(**changes: str) -> Sample:
            config = config_of(url, tmp_path, rollout_deterministic=True, rollout_temperature=0.0, **changes)
            return streamed(config, Sample(index=3, prompt="What is 74 * 3?", label="222"))

        plain, stream = sample(), sample(custom_generate_function_path="streaming")
    assert stream.response_length > 1
    assert stream.tokens[: -stream.response_length] == ids
    assert (stream.tokens, stream.rollout_log_probs) == (plain.tokens, plain.rollout_log_probs)
    assert (stream.response, stream.reward) == (plain.response, plain.reward)


def test_a_stream_that_is_refused_is_told_and_a_busy_one_is_asked_for_again(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    config = make_config(custom_generate_function_path="streaming")
    fake.scripted["/generate"] = [
        Scripted(429, "slow down", {"retry-after": "0"}),
        Scripted(400, {"error": {"message": "bad temperature"}}),
    ]
    sample = streamed(config, Sample(index=0, prompt="user question ?", label="4", tokens=[1, 2]))
    assert "400: bad temperature" in sample.metadata["error"]
    assert len(fake.requests) == 2
