"""The fake answers as the real server did."""

import json
from pathlib import Path
from typing import Any

import httpx

from tests.rollout.fake_router import FakeRouter

CAPTURE = Path(__file__).parents[1] / "captures" / "generate_text_logprob.json"


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


def test_generate_reply_has_the_shape_of_the_captured_one(fake: FakeRouter, router_url: str) -> None:
    real = json.loads(CAPTURE.read_text())["response"]["json"]
    payload = {"text": "a b", "rid": "x", "sampling_params": {}, "return_logprob": True}
    ours = httpx.post(f"{router_url}/generate", json=payload, trust_env=False).json()
    # Why it ended differs: the captured one ran into its limit.
    real["meta_info"].pop("finish_reason")
    assert ours["meta_info"].pop("finish_reason") == {"type": "stop", "matched": 2}
    assert shape(ours) == shape(real)
