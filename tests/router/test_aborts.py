"""What ends a call early ends its generation too: exactly that one, and soon."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from espalier.router.aborts import LANE_WIDTH, Aborter
from espalier.router.origin import Origin
from espalier.router.tally import Tally
from espalier.router.upstream import Upstream
from tests.router.running import connection_to, router, run, until
from tests.router.scripted import Script, reply, scripted_worker
from tests.simulator.workers import SLOW, running_worker

LONG = {"max_new_tokens": 5000, "ignore_eos": True}
"""25 s of sampling: whoever does not abort it waits in vain."""

NOTICED_BY_ITSELF_S = 3.0
"""A worker that nobody tells looks after its client every 4 s. Told, it took 30 ms here."""


@contextlib.contextmanager
def slow_worker(**settings: Any) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Run a router and its one worker, which looks for clients that left as rarely as the real one."""
    with running_worker(**SLOW, **settings) as worker, router(str(worker.base_url).rstrip("/")) as client:
        yield client, worker


def running(worker: httpx.Client) -> int:
    load: int = worker.get("/v1/loads").json()["loads"][0]["num_running_reqs"]
    return load


def totals(worker: httpx.Client) -> dict[str, int]:
    counted: dict[str, int] = worker.get("/simulator/counters").json()["totals"]
    return counted


@pytest.mark.parametrize("stream", [False, True])
def test_worker_is_free_soon_after_the_client_has_hung_up(stream: bool) -> None:
    with slow_worker() as (client, worker):
        body = json.dumps({"text": "hi", "sampling_params": LONG, "stream": stream}).encode()
        with connection_to(client) as bare:
            bare.sendall(
                b"POST /generate HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            until(lambda: running(worker) == 1)
        hung_up_s = time.monotonic()
        until(lambda: running(worker) == 0)
        assert time.monotonic() - hung_up_s < NOTICED_BY_ITSELF_S
        assert totals(worker)["aborted"] == 1
        until(lambda: 'espalier_aborts_total{cause="given_up"} 1.0' in client.get("/metrics").text)


def test_abort_by_the_clients_rid_ends_that_call_and_no_other() -> None:
    with slow_worker() as (client, worker), ThreadPoolExecutor() as pool:
        calls = {
            rid: pool.submit(
                client.post, "/generate", json={"rid": rid, "text": "hi", "sampling_params": LONG}
            )
            for rid in ("pre-1", "pre-12")
        }
        until(lambda: running(worker) == 2)
        answer = client.post("/abort_request", json={"rid": "pre-1"})
        assert (answer.status_code, answer.content) == (200, b"")
        told = calls["pre-1"].result().json()["meta_info"]
        assert (told["finish_reason"]["type"], told["id"]) == ("abort", "pre-1")
        assert running(worker) == 1
        client.post("/abort_request", json={"rid": "pre-", "prefix": True})
        assert calls["pre-12"].result().json()["meta_info"]["id"] == "pre-12"


def test_stream_that_names_no_rid_is_aborted_by_the_one_it_is_told() -> None:
    with (
        slow_worker() as (client, _),
        client.stream(
            "POST", "/generate", json={"text": "hi", "sampling_params": LONG, "stream": True}
        ) as answer,
    ):
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        client.post("/abort_request", json={"rid": json.loads(next(lines))["meta_info"]["id"]})
        *_, last, done = lines
        assert done == "[DONE]"
        assert json.loads(last)["meta_info"]["finish_reason"]["type"] == "abort"


def test_stream_tells_the_clients_rid_in_every_event() -> None:
    with slow_worker() as (client, _):
        body = {"rid": "mine", "text": "hi", "sampling_params": {"max_new_tokens": 4}, "stream": True}
        with client.stream("POST", "/generate", json=body) as answer:
            events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert events.pop() == "[DONE]"
        assert {json.loads(event)["meta_info"]["id"] for event in events} == {"mine"}


def test_one_prompt_of_a_batch_is_aborted_alone_and_the_batch_by_its_own_rid() -> None:
    with slow_worker() as (client, worker), ThreadPoolExecutor() as pool:
        body = {"rid": "batch", "text": ["one", "two", "three"], "sampling_params": LONG}
        call = pool.submit(client.post, "/generate", json=body)
        until(lambda: running(worker) == 3)
        client.post("/abort_request", json={"rid": "batch_1"})
        until(lambda: running(worker) == 2)
        client.post("/abort_request", json={"rid": "batch"})
        ids = [each["meta_info"]["id"] for each in call.result().json()]
        assert ids == ["batch_0", "batch_1", "batch_2"]


def test_batch_that_brings_its_rids_is_aborted_when_its_client_leaves() -> None:
    with slow_worker() as (client, worker):
        body = json.dumps({"rid": ["a", "b"], "text": ["one", "two"], "sampling_params": LONG}).encode()
        with connection_to(client) as bare:
            bare.sendall(
                b"POST /generate HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            until(lambda: running(worker) == 2)
        until(lambda: totals(worker)["aborted"] == 2)


def test_end_of_a_batch_that_brings_short_rids_ends_no_call_that_brings_none() -> None:
    digits = list("0123456789abcdef")
    with slow_worker() as (client, worker), ThreadPoolExecutor() as pool:
        call = pool.submit(client.post, "/generate", json={"text": "hi", "sampling_params": LONG})
        until(lambda: running(worker) == 1)
        batch = {"rid": digits, "text": ["hi"] * len(digits), "sampling_params": LONG}
        pool.submit(client.post, "/generate", json=batch)
        until(lambda: running(worker) == 1 + len(digits))
        for rid in digits:
            client.post("/abort_request", json={"rid": rid})
        assert (running(worker), totals(worker)["aborted"]) == (1, len(digits))
        client.post("/abort_request", json={"abort_all": True})
        assert call.result().json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_two_calls_of_one_rid_run_side_by_side_and_end_together() -> None:
    with slow_worker() as (client, worker), ThreadPoolExecutor() as pool:
        body = {"rid": "same", "text": "hi", "sampling_params": LONG}
        calls = [pool.submit(client.post, "/generate", json=body) for _ in range(2)]
        until(lambda: running(worker) == 2)
        client.post("/abort_request", json={"rid": "same"})
        assert [call.result().json()["meta_info"]["id"] for call in calls] == ["same", "same"]


def test_rid_that_is_not_known_here_is_passed_on_to_every_worker() -> None:
    with slow_worker() as (client, worker), ThreadPoolExecutor() as pool:
        body = {"rid": "direct", "text": "hi", "sampling_params": LONG}
        call = pool.submit(worker.post, "/generate", json=body)
        until(lambda: running(worker) == 1)
        answer = client.post("/abort_request", json={"rid": "direct"})
        assert (answer.status_code, answer.content) == (200, b"")
        assert call.result().json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_abort_all_ends_everything_and_tells_how_each_worker_answered() -> None:
    with slow_worker() as (client, worker), ThreadPoolExecutor() as pool:
        calls = [
            pool.submit(client.post, "/generate", json={"text": "hi", "sampling_params": LONG})
            for _ in range(5)
        ]
        until(lambda: running(worker) == 5)
        told = client.post("/abort_request", json={"abort_all": True}).json()
        assert (told["total"], told["succeeded"]) == (1, 1)
        assert {call.result().json()["meta_info"]["finish_reason"]["type"] for call in calls} == {"abort"}


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"rid": 5}', b'{"rid": "%b"}' % (b"x" * 5000)])
def test_abort_that_says_nothing_clear_is_400(body: bytes) -> None:
    with router() as client:
        answer = client.post("/abort_request", content=body)
        assert answer.status_code == 400
        assert "abort_all" in answer.json()["error"]["message"]


def test_abort_of_nothing_is_200_as_a_worker_has_it() -> None:
    with router() as client:
        assert client.post("/abort_request", json={"rid": ""}).status_code == 200
        assert client.post("/abort_request").status_code == 200


def test_two_thousand_aborts_use_few_connections_and_all_are_heard() -> None:
    heard: set[str] = set()
    at_once: set[int] = set()
    lock = threading.Lock()

    def script(client: Any, request: bytes) -> bool:
        with lock:
            heard.add(json.loads(request.partition(b"\r\n\r\n")[2])["rid"])
            at_once.add(client.getpeername()[1])
        client.sendall(reply(b""))
        return True

    rids = [f"{number:032x}" for number in range(2000)]
    with scripted_worker(script) as url:
        _abort(url, rids)
    assert heard == set(rids)
    assert len(at_once) <= LANE_WIDTH


def test_worker_that_hangs_holds_up_no_other_workers_aborts() -> None:
    released = threading.Event()

    def hang(client: Any, request: bytes) -> bool:
        return released.wait(20)

    def answer(client: Any, request: bytes) -> bool:
        client.sendall(reply(b""))
        return True

    async def test(hanging: str, alive: str) -> None:
        upstream = Upstream(connect_timeout_s=5, request_timeout_s=20)
        aborter = Aborter(upstream, Tally())
        stuck = Origin.parse(hanging)
        for number in range(100):
            aborter.abort(stuck, [f"stuck-{number}"], age_s=60, cause="test")
        await asyncio.wait_for(aborter.abort(Origin.parse(alive), ["one"], age_s=60, cause="test"), 10)
        released.set()
        await aborter.aclose()

    with scripted_worker(hang) as hanging, scripted_worker(answer) as alive:
        run(test(hanging, alive))


def test_abort_of_a_call_that_was_only_just_sent_is_said_twice() -> None:
    heard: list[bytes] = []

    def script(client: Any, request: bytes) -> bool:
        heard.append(request)
        client.sendall(reply(b""))
        return True

    async def test(url: str) -> None:
        aborter = Aborter(Upstream(connect_timeout_s=5, request_timeout_s=5), Tally())
        await aborter.abort(Origin.parse(url), ["young"], age_s=0.1, cause="test")
        await asyncio.to_thread(until, lambda: len(heard) == 2)
        await aborter.aclose()

    _with(script, test)


def _abort(url: str, rids: list[str]) -> None:
    async def test() -> None:
        aborter = Aborter(Upstream(connect_timeout_s=5, request_timeout_s=5), Tally())
        origin = Origin.parse(url)
        await asyncio.wait([aborter.abort(origin, [rid], age_s=60, cause="test") for rid in rids])
        await aborter.aclose()

    run(test())


def _with(script: Script, test: Any) -> None:
    with scripted_worker(script) as url:
        run(test(url))


def test_abort_that_is_nested_without_end_is_a_bad_request(caplog: pytest.LogCaptureFixture) -> None:
    with router() as client:
        nested = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        answer = client.post("/abort_request", content=nested)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    assert caplog.records == []
