"""What the rest of Espalier takes for granted about SGLang, asked of the real server."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from .workers import EngineWorker

pytestmark = pytest.mark.engine

CAPTURES = Path(__file__).resolve().parents[1] / "captures"
PROMPT = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"

CACHE_DEPENDENT = {"cached_tokens_details"}
"""An object where SGLang's cache held some of the prompt, else null."""

Shape = dict[str, set[str]]
"""Path to a value (`meta_info.output_token_logprobs[][]`) -> the JSON types found there."""


def shape(value: object, path: str = "") -> Shape:
    found: Shape = {}
    waiting = [(path, value)]
    while waiting:
        where, item = waiting.pop()
        found.setdefault(where, set()).add(json_type(item))
        if isinstance(item, dict):
            waiting += [(f"{where}.{key}", each) for key, each in item.items() if key not in CACHE_DEPENDENT]
        elif isinstance(item, list):
            waiting += [(f"{where}[]", each) for each in item]
    return found


def json_type(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def sse_shape(lines: list[str]) -> Shape:
    """The events' shapes together; how many there are and how they are cut varies from run to run."""
    events = [line.removeprefix("data: ").strip() for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return shape([json.loads(event) for event in events[:-1]])


def generate(worker: EngineWorker, **body: object) -> dict[str, Any]:
    reply = httpx.post(f"{worker.url}/generate", json=body, timeout=60, trust_env=False)
    assert reply.status_code == 200, reply.text
    decoded: dict[str, Any] = reply.json()
    return decoded


def greedy(worker: EngineWorker, **prompt: object) -> dict[str, Any]:
    return generate(
        worker, sampling_params={"temperature": 0, "max_new_tokens": 24}, return_logprob=True, **prompt
    )


def logprobs(reply: dict[str, Any]) -> list[float]:
    return [entry[0] for entry in reply["meta_info"]["output_token_logprobs"]]


@pytest.mark.parametrize(
    "name",
    [
        "abort_unknown_rid",
        "chat_logprobs",
        "err_bad_json",
        "err_bad_temperature",
        "err_empty_ids",
        "err_get_generate",
        "err_missing_input_stream",
        "err_unknown_route",
        "err_unknown_sampling_param",
        "generate_batch_ids_rids_params_list",
        "generate_input_ids_logprob_full",
        "generate_n2",
        "generate_stop_token_ids",
        "generate_stream_ids_logprob_top",
        "generate_stream_logprob",
        "generate_text_logprob",
        "generate_text_no_logprob",
        "info_model_info",
        "info_ready",
        "info_tokenize",
        "info_v1_loads",
    ],
)
def test_reply_has_the_captured_status_and_shape(engine_workers: tuple[EngineWorker, ...], name: str) -> None:
    capture = json.loads((CAPTURES / f"{name}.json").read_text(encoding="utf-8"))
    request, captured = capture["request"], capture["response"]
    body = request["raw"] if request["body"] is None else json.dumps(request["body"])
    reply = httpx.request(
        request["method"],
        engine_workers[0].url + request["path"],
        headers=request["headers"],
        content=body,
        timeout=60,
        trust_env=False,
    )
    assert reply.status_code == captured["status"]
    assert reply.headers.get("content-type") == captured["headers"].get("content-type")
    if "json" in captured:
        assert shape(reply.json()) == shape(captured["json"])
    elif "sse_lines" in captured:
        assert sse_shape(reply.text.splitlines()) == sse_shape(
            [each["line"] for each in captured["sse_lines"]]
        )
    else:
        assert reply.text == captured["text"]


def test_every_output_token_has_its_log_probability(engine_workers: tuple[EngineWorker, ...]) -> None:
    reply = greedy(engine_workers[0], text=PROMPT)
    entries = reply["meta_info"]["output_token_logprobs"]
    assert [token_id for _, token_id, _ in entries] == reply["output_ids"]
    assert len(reply["output_ids"]) == reply["meta_info"]["completion_tokens"]
    assert all(value < 0 for value in logprobs(reply))


def test_greedy_output_is_repeatable(engine_workers: tuple[EngineWorker, ...]) -> None:
    first, second = (greedy(engine_workers[0], text=PROMPT) for _ in range(2))
    assert first["output_ids"] == second["output_ids"]
    assert logprobs(first) == pytest.approx(logprobs(second), abs=1e-4)


def test_text_and_its_own_token_ids_give_the_same_output(engine_workers: tuple[EngineWorker, ...]) -> None:
    worker = engine_workers[0]
    tokenized = httpx.post(f"{worker.url}/tokenize", json={"prompt": PROMPT}, trust_env=False).json()
    by_text, by_ids = greedy(worker, text=PROMPT), greedy(worker, input_ids=tokenized["tokens"])
    assert by_text["meta_info"]["prompt_tokens"] == len(tokenized["tokens"])
    assert by_text["output_ids"] == by_ids["output_ids"]


def test_workers_of_different_seeds_give_different_outputs(engine_workers: tuple[EngineWorker, ...]) -> None:
    first, second = (greedy(worker, text=PROMPT) for worker in engine_workers)
    assert first["meta_info"]["prompt_tokens"] == second["meta_info"]["prompt_tokens"]
    assert first["output_ids"] != second["output_ids"]
