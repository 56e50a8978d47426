"""Replays what real SGLang was asked, and compares status and reply shape with what it said."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.simulator.shapes import CAPTURES, capture, differences, sse_events
from tests.simulator.workers import INSTANT, events_of, running_worker

NOT_SIMULATED_PATHS = {
    "/v1/chat/completions": "no OpenAI endpoints",
    "/v1/completions": "no OpenAI endpoints",
    "/api/tags": "no Ollama endpoints",
    "/openapi.json": "no schema of its own",
    "/open_session": "no sessions",
    "/slow_down": "the latency model is set at the start",
    "/release_memory_occupation": "no memory to release",
    "/resume_memory_occupation": "no memory to resume",
    "/get_weights_by_name": "no weights",
    "/weights_checker": "no weights",
}
"""Paths that the simulated worker does not have."""

NOT_SIMULATED = {
    "v2_bad_regex": "no grammar backend: every grammar is refused, as with --grammar-backend none",
    "v2_bad_regex_stream": "no grammar backend",
    "v2_regex_constrained": "no grammar backend",
    "v2_metrics": "no --enable-metrics",
    "v2_generate_meta_with_metrics": "no --enable-metrics: meta_info has fewer keys",
}
"""Single captures of what is not simulated."""

SCRIPTED_PREFIXES = (
    *("abort_running", "abort_waiting", "abort_all", "abort_one", "abort_n2", "abort_prefix", "abort_chat"),
    *("pause_abort", "pause_default", "pause_retract", "pause_in_place", "client_disconnect", "kill9"),
    *(
        "sigterm",
        "v2_sigterm",
        "v2_retract",
        "v2_queue_full",
        "v2_loads",
        "v3_forced",
        "loads_while",
        "health_",
    ),
    *("upd_abort_all", "upd_paused", "upd_while", "upd_stream", "err_duplicate_rid", "flush_cache_while"),
)
"""Captures that are one step of a sequence, or need other requests at the same time: test_sequences.py, which
has scripted tests, compares with them, and test_server.py and test_faults.py show the deaths."""

KILLING_SUFFIX = "_CRASH"
"""Captures of a request that killed the worker: test_death.py."""

TWO_RANKS_PREFIX = "dp2_"
"""Captures of a server of two data-parallel ranks, which is not simulated."""

PARTIAL_REPLIES = {
    "/model_info": {"model_path", "tokenizer_path", "weight_version", "served_model_name", "is_generation"},
    "/get_model_info": {"model_path", "tokenizer_path", "weight_version", "served_model_name"},
    "/server_info": {
        "version",
        "internal_states",
        "max_running_requests",
        "context_length",
        "dp_size",
        "tp_size",
    },
    "/get_server_info": {"version", "internal_states", "max_running_requests", "context_length"},
}
"""Replies that leave most of the real one's keys out, and the keys that they must have. What they have must
have the real one's type."""

METRICS_KEYS = frozenset(
    (
        *("storage_prefetch_wait", "storage_staging_wait", "forward_entry_time", "prefill_finished_time"),
        *("queue_time", "request_received_ts", "first_token_latency", "api_server_dispatch_finish_ts"),
        *("request_finished_ts", "decode_throughput"),
    )
)
"""Keys of meta_info that --enable-metrics adds; the captures v2_* were made with it."""


def replayable() -> list[str]:
    names: list[str] = []
    for entry in json.loads((CAPTURES / "INDEX.json").read_text(encoding="utf-8")):
        name = entry["file"].removesuffix(".json")
        is_simulated = (
            entry["method"] is not None
            and entry["path"].partition("?")[0] not in NOT_SIMULATED_PATHS
            and name not in NOT_SIMULATED
            and not name.startswith((*SCRIPTED_PREFIXES, TWO_RANKS_PREFIX))
            and not name.endswith(KILLING_SUFFIX)
        )
        if is_simulated:
            names.append(name)
    return names


REAL_SETTINGS: dict[str, dict[str, Any]] = {
    "v2": {"max_total_tokens": 600, "max_running_requests": 4, "incremental_streaming_output": True},
    "v3": {"api_key": "secret", "skip_tokenizer_init": True, "weight_version": "w0"},
    "": {"max_total_tokens": 8192, "max_running_requests": 16, "check_model_path": True},
}
"""How the captured servers were started, by the prefix of the captures' names."""


def server_of(name: str) -> str:
    prefix = name.partition("_")[0]
    return prefix if prefix in REAL_SETTINGS else ""


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "MODELS" / "model").mkdir(parents=True)
    (folder / "MODELS" / "model_v2").mkdir()
    common = INSTANT | {"served_model_name": "tiny", "context_length": 2048}
    with (
        pytest.MonkeyPatch.context() as patch,
        running_worker(**common, **REAL_SETTINGS[""]) as plain,
        running_worker(**common, **REAL_SETTINGS["v2"]) as small,
        running_worker(**common, **REAL_SETTINGS["v3"]) as locked,
    ):
        patch.chdir(folder)
        yield {"": plain, "v2": small, "v3": locked}


@pytest.mark.parametrize("name", replayable())
def test_reply_has_the_captured_status_and_shape(workers: dict[str, httpx.Client], name: str) -> None:
    captured = capture(name)
    request, theirs = captured["request"], captured["response"]
    client = workers[server_of(name)]
    headers = {key: value for key, value in request["headers"].items() if value is not None}
    content = request["raw"] if request["body"] is None else json.dumps(request["body"])

    reply = client.request(request["method"], request["path"], headers=headers, content=content)

    assert reply.status_code == theirs["status"], reply.text
    if "sse_lines" in theirs:
        compare_streams(events_of(iter(reply.text.splitlines())), sse_events(theirs["sse_lines"]))
    elif "json" in theirs:
        compare_json(request["path"], reply.json(), without_metrics(theirs["json"]))
    else:
        assert reply.text == theirs["text"]


def test_most_captures_are_replayed() -> None:
    assert len(replayable()) >= 95


def compare_json(path: str, ours: Any, theirs: Any) -> None:
    required = PARTIAL_REPLIES.get(path)
    if required is None or "error" in theirs:
        assert differences(ours, theirs) == []
        return
    assert required <= set(ours)
    ours_without_states = {key: value for key, value in ours.items() if key != "internal_states"}
    assert differences(ours_without_states, {key: theirs[key] for key in ours_without_states}) == []


def compare_streams(ours: list[Any], theirs: list[Any]) -> None:
    assert ours[-1] == "[DONE]"
    events = ours[:-1]
    last = without_metrics(theirs[-1])
    if last != theirs[-1]:
        last["meta_info"].pop("response_sent_to_client_ts")  # with metrics, told in the last event, too
    assert differences(events[0], without_metrics(theirs[0])) == []
    assert differences(events[-1], last) == []
    assert [sorted(event) for event in events] == [sorted(theirs[0])] * len(events)


def without_metrics(reply: Any) -> Any:
    """Return a captured reply as a server without metrics gives it."""
    if isinstance(reply, dict) and "meta_info" in reply:
        meta = {key: value for key, value in reply["meta_info"].items() if key not in METRICS_KEYS}
        return reply | {"meta_info": meta}
    return reply
