import asyncio
import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from espalier.errors import ConfigError, RolloutError
from espalier.rollout import RolloutConfig, Sample, Status, generate
from espalier.rollout.routed_experts import decode_routed_experts
from tests.rollout.fake_router import FakeRouter, Generation

REPLAY = {"use_rollout_routing_replay": True, "num_layers": 3, "moe_router_topk": 2}
PARAMS = {"max_new_tokens": 50}


def experts(tokens: int) -> Any:
    return np.arange((tokens - 1) * 6, dtype="<i4").reshape(tokens - 1, 3, 2)


def with_experts(reply: dict[str, Any]) -> dict[str, Any]:
    tokens = reply["meta_info"]["prompt_tokens"] + reply["meta_info"]["completion_tokens"]
    reply["meta_info"]["routed_experts"] = base64.b64encode(experts(tokens).tobytes()).decode()
    return reply


def test_a_sample_has_the_experts_of_all_its_tokens_but_the_last(
    fake: FakeRouter, make_config: Callable[..., RolloutConfig]
) -> None:
    fake.change_reply = with_experts
    sample = Sample(index=0, prompt="user question 1 ?")
    asyncio.run(generate(make_config(**REPLAY), sample, PARAMS))
    assert fake.requests[0]["return_routed_experts"] is True
    assert sample.rollout_routed_experts.dtype == np.int32
    assert np.array_equal(sample.rollout_routed_experts, experts(len(sample.tokens)))
    sample.status = Status.ABORTED
    asyncio.run(generate(make_config(**REPLAY), sample, PARAMS))
    assert sample.rollout_routed_experts.shape == (len(sample.tokens) - 1, 3, 2)


def test_they_are_not_asked_for_otherwise(
    fake: FakeRouter, make_config: Callable[..., RolloutConfig]
) -> None:
    sample = Sample(index=0, prompt="user question 1 ?")
    asyncio.run(generate(make_config(), sample, PARAMS))
    assert "return_routed_experts" not in fake.requests[0]
    assert sample.rollout_routed_experts is None


def test_a_reply_without_experts_fails_its_sample(
    fake: FakeRouter, make_config: Callable[..., RolloutConfig]
) -> None:
    sample = Sample(index=0, prompt="user question 1 ?")
    with pytest.raises(RolloutError, match="run workers with --enable-return-routed-experts"):
        asyncio.run(generate(make_config(**REPLAY), sample, PARAMS))
    assert sample.tokens == []


def test_a_sample_that_is_aborted_before_it_can_tell_goes_on_later(
    fake: FakeRouter, make_config: Callable[..., RolloutConfig]
) -> None:
    fake.generation = lambda _: Generation(["The"], finish="abort")
    sample = Sample(index=0, prompt="user question 1 ?")
    asyncio.run(generate(make_config(**REPLAY), sample, PARAMS))
    assert (sample.status, sample.rollout_routed_experts) == (Status.ABORTED, None)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [("!", "no base64"), (base64.b64encode(b"1234").decode(), r"4 bytes, not the 72 of int32 \[3, 3, 2\]")],
)
def test_experts_that_do_not_fit_are_refused(encoded: str, message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        decode_routed_experts(encoded, tokens=4, layers=3, topk=2)


def test_the_models_measures_are_needed(make_config: Callable[..., RolloutConfig]) -> None:
    with pytest.raises(ConfigError, match="needs --num-layers and --moe-router-topk"):
        make_config(use_rollout_routing_replay=True, num_layers=3)
