"""Aborts, pauses, updates of the weights and full queues, compared with what real SGLang said in each."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from espalier.simulator import token_logprob
from tests.simulator.shapes import capture, differences, sse_events
from tests.simulator.workers import INSTANT, SLOW, counts, events_of, eventually, generate, running_worker

LONG = {"max_new_tokens": 3000, "temperature": 0, "ignore_eos": True}
"""Sampling parameters of a reply that takes 15 s on a slow worker."""

SHORT = {"max_new_tokens": 60, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def worker() -> Iterator[httpx.Client]:
    with running_worker(**SLOW) as client:
        yield client


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=12) as executor:
        yield executor


def start(pool: ThreadPoolExecutor, client: httpx.Client, **body: Any) -> "Future[Any]":
    """Start a call and wait until the worker has it running or waiting."""
    rid = body["rid"] if isinstance(body["rid"], str) else body["rid"][0]
    future = pool.submit(client.post, "/generate", json={"input_ids": [50, 51, 52, 53], **body})
    eventually(lambda: counts(client, rid) is not None)
    return future


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    return client.post(path, json=body).json()


def wait_for_tokens(client: httpx.Client, at_least: int) -> None:
    eventually(lambda: client.get("/v1/loads").json()["loads"][0]["num_used_tokens"] >= at_least)


def assert_like(reply: Any, name: str) -> None:
    assert differences(reply, capture(name)["response"]["json"]) == []


def test_running_generation_is_aborted_with_what_it_has(
    worker: httpx.Client, pool: ThreadPoolExecutor
) -> None:
    call = start(pool, worker, rid="ab-1", sampling_params=LONG, return_logprob=True)
    wait_for_tokens(worker, 8)
    abort = worker.post("/abort_request", json={"rid": "ab-1"})
    reply = call.result().json()
    assert (abort.status_code, abort.content) == (200, b"")
    assert_like(reply, "abort_running_result")
    assert reply["meta_info"]["finish_reason"]["message"] == "Aborted"
    assert 0 < reply["meta_info"]["completion_tokens"] == len(reply["output_ids"]) < 3000
    assert counts(worker, "ab-1") == {"received": 1, "finished": 0, "aborted": 1, "disconnected": 0}


def test_aborted_stream_ends_with_an_abort_event(worker: httpx.Client) -> None:
    body = {
        "rid": "ab-2",
        "input_ids": [50, 51],
        "sampling_params": LONG,
        "return_logprob": True,
        "stream": True,
    }
    with worker.stream("POST", "/generate", json=body) as reply:
        lines = reply.iter_lines()
        first = next(lines)
        worker.post("/abort_request", json={"rid": "ab-2"})
        events = events_of(iter([first, *lines]))
    real = sse_events(capture("abort_running_stream_result")["response"]["sse_lines"])
    assert events[-1] == "[DONE]"
    assert differences(events[0], real[0]) == []
    assert differences(events[-2], real[-1]) == []
    assert events[-2]["meta_info"]["finish_reason"]["type"] == "abort"


def test_abort_matches_by_prefix_only_from_a_live_rid(worker: httpx.Client, pool: ThreadPoolExecutor) -> None:
    calls = {
        rid: start(pool, worker, rid=rid, sampling_params=LONG) for rid in ("pre-1", "pre-12", "other-1")
    }
    worker.post("/abort_request", json={"rid": "pre"})
    worker.post("/abort_request", json={"rid": "pre-1"})
    for rid in ("pre-1", "pre-12"):
        assert calls[rid].result().json()["meta_info"]["finish_reason"]["type"] == "abort"
    assert capture("abort_prefix_result")["response"]["json"] == {
        rid: call.done() for rid, call in calls.items()
    }
    worker.post("/abort_request", json={"abort_all": True})
    assert calls["other-1"].result().json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_waiting_generation_is_aborted_in_the_reduced_form(pool: ThreadPoolExecutor) -> None:
    with running_worker(**SLOW, max_running_requests=1) as worker:
        first = start(pool, worker, rid="first", sampling_params=LONG)
        waiting = start(pool, worker, rid="waiting-1", sampling_params=LONG, return_logprob=True)
        worker.post("/abort_request", json={"rid": "waiting-1"})
        assert_like(waiting.result().json(), "abort_waiting_result")
        assert not first.done()
        worker.post("/abort_request", json={"abort_all": True})
        first.result()


def test_one_of_a_batch_is_aborted_alone(worker: httpx.Client, pool: ThreadPoolExecutor) -> None:
    call = start(pool, worker, rid=["b-0", "b-1"], input_ids=[[50], [51]], sampling_params=SHORT)
    worker.post("/abort_request", json={"rid": "b-0"})
    reply = call.result().json()
    assert_like(reply, "abort_one_of_batch_result")
    assert [each["meta_info"]["finish_reason"]["type"] for each in reply] == ["abort", "length"]


def test_siblings_cannot_be_aborted_by_the_rid_they_were_sent_with(
    worker: httpx.Client, pool: ThreadPoolExecutor
) -> None:
    params = SHORT | {"n": 2, "temperature": 1.0}
    call = pool.submit(
        worker.post, "/generate", json={"rid": "nn", "input_ids": [50], "sampling_params": params}
    )
    eventually(lambda: worker.get("/v1/loads").json()["loads"][0]["num_running_reqs"] == 2)
    worker.post("/abort_request", json={"rid": "nn"})
    types = [each["meta_info"]["finish_reason"]["type"] for each in call.result().json()]
    assert types == ["length", "length"]


def test_second_call_of_a_live_rid_is_refused(worker: httpx.Client, pool: ThreadPoolExecutor) -> None:
    first = start(pool, worker, rid="dup", sampling_params=SHORT)
    second = worker.post("/generate", json={"rid": "dup", "input_ids": [50], "sampling_params": SHORT})
    assert second.status_code == 400
    assert second.json() == capture("err_duplicate_rid_concurrent")["response"]["json"]
    assert first.result().json()["meta_info"]["finish_reason"]["type"] == "length"


def test_full_queue_is_503_and_in_a_stream_an_abort_event(pool: ThreadPoolExecutor) -> None:
    with running_worker(**SLOW, max_running_requests=1, max_queued_requests=1) as worker:
        calls = [start(pool, worker, rid=rid, sampling_params=LONG) for rid in ("runs", "waits")]
        refused = worker.post("/generate", json={"rid": "w1", "input_ids": [71]})
        with worker.stream(
            "POST", "/generate", json={"rid": "w3", "input_ids": [73], "stream": True}
        ) as reply:
            status, events = reply.status_code, events_of(reply.iter_lines())
        load = worker.get("/v1/loads").json()
        busy = worker.post("/flush_cache")
        worker.post("/abort_request", json={"abort_all": True})
        for call in calls:
            call.result()
    real = capture("v2_queue_full_3")["response"]
    assert refused.status_code == 503
    assert refused.json() == capture("v2_queue_full_1")["response"]["json"]
    assert status == real["status"] == 200
    assert differences(events[0], sse_events(real["sse_lines"])[0]) == []
    assert events[0]["meta_info"]["finish_reason"]["status_code"] == 503
    assert_like(load, "loads_while_16_running_1_waiting")
    assert (load["loads"][0]["num_running_reqs"], load["loads"][0]["num_waiting_reqs"]) == (1, 1)
    captured = capture("flush_cache_while_busy")["response"]
    assert (busy.status_code, busy.text) == (captured["status"], captured["text"])


@pytest.mark.parametrize("mode", ["abort", "default"])
def test_pause_by_abort_ends_what_runs_and_holds_what_comes(
    worker: httpx.Client, pool: ThreadPoolExecutor, mode: str
) -> None:
    running = start(pool, worker, rid="runs", sampling_params=LONG, return_logprob=True)
    pause = post(worker, "/pause_generation", **({} if mode == "default" else {"mode": mode}))
    assert_like(running.result().json(), f"pause_{mode}_inflight_result")
    held = start(pool, worker, rid="held", sampling_params={"max_new_tokens": 2})
    assert worker.post("/flush_cache").status_code == 200
    assert worker.get("/ready").status_code == 503
    assert worker.get("/ping").status_code == 200
    assert_like(worker.get("/v1/loads").json(), f"pause_{mode}_loads")
    assert not held.done()
    resumed = post(worker, "/continue_generation")
    assert_like(held.result().json(), f"pause_{mode}_request_during_pause")
    assert pause == capture(f"pause_{mode}_call")["response"]["json"]
    assert resumed == capture(f"pause_{mode}_continue_call")["response"]["json"]


@pytest.mark.parametrize(("mode", "flush_status", "retractions"), [("retract", 200, 1), ("in_place", 400, 0)])
def test_paused_generation_goes_on_where_it_was(
    worker: httpx.Client, pool: ThreadPoolExecutor, mode: str, flush_status: int, retractions: int
) -> None:
    undisturbed = generate(worker, input_ids=[50, 51, 52, 53], sampling_params=SHORT)["output_ids"]
    call = start(pool, worker, rid="runs", sampling_params=SHORT, return_logprob=True)
    wait_for_tokens(worker, 6)
    post(worker, "/pause_generation", mode=mode)
    flushed = worker.post("/flush_cache")
    load = worker.get("/v1/loads").json()["loads"][0]
    assert flushed.status_code == capture(f"pause_{mode}_flush_cache")["response"]["status"] == flush_status
    assert load["num_running_reqs"] == 1
    assert not call.done()
    post(worker, "/continue_generation")
    reply = call.result().json()
    assert_like(reply, f"pause_{mode}_inflight_result")
    assert reply["output_ids"] == undisturbed
    assert reply["meta_info"]["num_retractions"] == retractions


def test_health_while_paused_waits_and_then_marks_the_worker_unhealthy() -> None:
    with running_worker(**INSTANT, health_timeout_s=0.2) as worker:
        post(worker, "/pause_generation", mode="in_place")
        assert (
            worker.get("/health").status_code == capture("pause_in_place_health")["response"]["status"] == 503
        )
        assert worker.get("/ping").status_code == 503
        post(worker, "/continue_generation")
        assert worker.get("/ready").status_code == 503
        assert worker.get("/health").status_code == 200
        assert worker.get("/ready").status_code == 200


def test_health_while_paused_takes_a_flush_for_a_sign_of_life(pool: ThreadPoolExecutor) -> None:
    with running_worker(**INSTANT, health_timeout_s=30) as worker:
        post(worker, "/pause_generation", mode="retract")
        probe = pool.submit(worker.get, "/health")
        eventually(lambda: worker.post("/flush_cache").status_code == 200 and probe.done())
        assert probe.result().status_code == 200


@pytest.mark.parametrize("mode", ["in_place", "retract"])
@pytest.mark.parametrize("flush", [True, False])
def test_update_while_paused_splits_the_reply_between_the_versions(
    worker: httpx.Client, pool: ThreadPoolExecutor, mode: str, flush: bool
) -> None:
    prompt = [50, 51]
    call = start(pool, worker, rid="u", input_ids=prompt, sampling_params=SHORT, return_logprob=True)
    wait_for_tokens(worker, 6)
    post(worker, "/pause_generation", mode=mode)
    update = worker.post(
        "/update_weights_from_disk", json={"model_path": "new", "weight_version": "v2", "flush_cache": flush}
    )
    info = worker.get("/model_info").json()
    post(worker, "/continue_generation")
    reply = call.result().json()

    captured = capture(f"upd_paused_{mode}_flush{flush}")["response"]
    assert update.status_code == captured["status"]
    assert differences(update.json(), captured["json"]) == []
    assert update.json()["success"] is captured["json"]["success"]
    assert (info["weight_version"], info["served_model_name"]) == ("v2", "new")
    assert_like(reply, f"upd_paused_{mode}_flush{flush}_inflight")
    meta = reply["meta_info"]
    before, after = meta["weight_versions"]
    assert meta["weight_version"] == "v2"
    assert (before["version"], before["start"], after["version"], after["end"]) == ("default", 0, "v2", 60)
    assert 0 < before["end"] == after["start"] < 60
    for i, (logprob, token_id, _) in enumerate(meta["output_token_logprobs"]):
        version = "default" if i < before["end"] else "v2"
        assert logprob == token_logprob([*prompt, *reply["output_ids"][:i]], token_id, version)


def test_update_without_a_pause_waits_for_what_runs(worker: httpx.Client, pool: ThreadPoolExecutor) -> None:
    running = start(pool, worker, rid="u-1", sampling_params=SHORT, return_logprob=True)
    update = pool.submit(
        worker.post, "/update_weights_from_disk", json={"model_path": "new", "weight_version": "v6"}
    )
    reply = running.result().json()
    assert_like(update.result().json(), "upd_while_running")
    assert_like(reply, "upd_while_running_inflight")
    assert [span["version"] for span in reply["meta_info"]["weight_versions"]] == ["default"]
    assert generate(worker, input_ids=[50], sampling_params=SHORT)["meta_info"]["weight_version"] == "v6"


def test_update_can_abort_what_runs(worker: httpx.Client, pool: ThreadPoolExecutor) -> None:
    running = start(pool, worker, rid="u-2", sampling_params=LONG, return_logprob=True)
    update = post(
        worker, "/update_weights_from_disk", model_path="m", weight_version="v7", abort_all_requests=True
    )
    assert_like(update, "upd_abort_all")
    assert_like(running.result().json(), "upd_abort_all_inflight")


def test_version_renamed_in_a_pause_splits_a_stream(worker: httpx.Client) -> None:
    body = {"rid": "u-s", "input_ids": [50, 51], "sampling_params": SHORT, "stream": True}
    with worker.stream("POST", "/generate", json=body) as reply:
        lines = reply.iter_lines()
        first = next(lines)
        post(worker, "/pause_generation", mode="in_place")
        post(worker, "/update_weight_version", new_version="s2", abort_all_requests=False)
        post(worker, "/continue_generation")
        events = events_of(iter([first, *lines]))
    final = sse_events(capture("upd_stream_across_version")["response"]["sse_lines"])[-1]
    assert differences(events[-2], final) == []
    assert [span["version"] for span in events[-2]["meta_info"]["weight_versions"]] == ["default", "s2"]


def test_stream_of_a_client_that_leaves_ends_at_once(worker: httpx.Client) -> None:
    body = {"rid": "disc-1", "input_ids": [50], "sampling_params": LONG, "stream": True}
    with worker.stream("POST", "/generate", json=body) as reply:
        next(reply.iter_lines())
    eventually(
        lambda: counts(worker, "disc-1") == {"received": 1, "finished": 0, "aborted": 1, "disconnected": 1}
    )


def test_client_that_leaves_without_a_stream_is_noticed_at_the_next_look() -> None:
    with running_worker(**SLOW, disconnect_poll_s=0.5) as worker:
        body = {"rid": "disc-2", "input_ids": [50], "sampling_params": LONG}
        with pytest.raises(httpx.ReadTimeout):
            worker.post("/generate", json=body, timeout=0.1)
        assert counts(worker, "disc-2") == {"received": 1, "finished": 0, "aborted": 0, "disconnected": 0}
        eventually(lambda: (counts(worker, "disc-2") or {})["disconnected"] == 1)
        assert (counts(worker, "disc-2") or {})["aborted"] == 1


def test_many_calls_at_a_time_are_each_generated_once(worker: httpx.Client, pool: ThreadPoolExecutor) -> None:
    barrier = threading.Barrier(8)

    def call(i: int) -> Any:
        barrier.wait()
        return generate(worker, rid=f"many-{i}", input_ids=[50 + i], sampling_params=SHORT)

    replies = list(pool.map(call, range(8)))
    assert [reply["meta_info"]["id"] for reply in replies] == [f"many-{i}" for i in range(8)]
    totals = worker.get("/simulator/counters").json()["totals"]
    assert json.dumps(totals) == json.dumps({"received": 8, "finished": 8, "aborted": 0, "disconnected": 0})
