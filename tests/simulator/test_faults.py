"""Each fault, seen by a client; the worker serves on afterwards."""

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from espalier.simulator.app import create_app
from espalier.simulator.faults import FAULT_NAMES, MAX_FAULTS
from espalier.simulator.settings import WorkerSettings
from tests.serving import serve
from tests.simulator.workers import BROKEN_OFF, INSTANT, events_of, running_worker

BODY = {"input_ids": [50, 51], "sampling_params": {"max_new_tokens": 20, "ignore_eos": True}}


@pytest.fixture(scope="module")
def worker() -> Iterator[httpx.Client]:
    with running_worker(**INSTANT) as client:
        yield client


@pytest.fixture(autouse=True)
def behave(worker: httpx.Client) -> Iterator[None]:
    yield
    assert worker.delete("/simulator/faults").json() == []
    assert worker.post("/generate", json=BODY).status_code == 200


def set_fault(worker: httpx.Client, **fault: Any) -> None:
    reply = worker.post("/simulator/faults", json=fault)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("name", ["die_before_headers", "refuse"])
def test_connection_is_reset_before_the_headers(worker: httpx.Client, name: str) -> None:
    set_fault(worker, fault=name, calls=1)
    with pytest.raises(BROKEN_OFF):
        worker.post("/generate", json=BODY)


def test_whole_reply_breaks_off_half_way(worker: httpx.Client) -> None:
    set_fault(worker, fault="die_mid_reply", calls=1)
    received: list[bytes] = []
    with worker.stream("POST", "/generate", json=BODY) as reply, pytest.raises(BROKEN_OFF):
        received.extend(reply.iter_raw())
    assert 0 < len(b"".join(received)) < int(reply.headers["content-length"])


def test_stream_breaks_off_without_its_end(worker: httpx.Client) -> None:
    set_fault(worker, fault="die_mid_reply", calls=1, after_events=3)
    received: list[bytes] = []
    body = BODY | {"stream": True}
    with worker.stream("POST", "/generate", json=body) as reply, pytest.raises(BROKEN_OFF):
        received.extend(reply.iter_raw())
    events = events_of(iter(b"".join(received).decode().splitlines()))
    assert len(events) == 3
    assert "[DONE]" not in events


def test_hanging_call_is_never_answered(worker: httpx.Client) -> None:
    set_fault(worker, fault="hang", calls=1)
    with pytest.raises(httpx.ReadTimeout):
        worker.post("/generate", json=BODY, timeout=0.2)


def test_full_queue_is_503(worker: httpx.Client) -> None:
    set_fault(worker, fault="queue_full", calls=2)
    assert worker.post("/generate", json=BODY).status_code == 503
    with worker.stream("POST", "/generate", json=BODY | {"stream": True}) as reply:
        events = events_of(reply.iter_lines())
    assert events[0]["meta_info"]["finish_reason"]["status_code"] == 503


def test_error_has_the_status_asked_for_on_the_path_asked_for(worker: httpx.Client) -> None:
    set_fault(worker, fault="http_error", path="/health", status=502)
    assert worker.get("/health").status_code == 502
    assert worker.post("/generate", json=BODY).status_code == 200


def test_slow_reply_drips_and_is_whole(worker: httpx.Client) -> None:
    set_fault(worker, fault="slow_drip", calls=1, chunk_bytes=100, delay_s=0.01)
    began = time.monotonic()
    reply = worker.post("/generate", json=BODY)
    assert len(reply.json()["output_ids"]) == 20
    assert time.monotonic() - began >= 0.01 * (len(reply.content) // 100)


def test_connection_is_closed_unannounced_after_the_reply() -> None:
    with serve(create_app(WorkerSettings(**INSTANT, fault="close_after_reply", fault_calls=1))) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        connection.request("POST", "/generate", json.dumps(BODY), {"content-type": "application/json"})
        reply = connection.getresponse()
        assert (reply.status, reply.getheader("connection")) == (200, None)
        assert len(json.loads(reply.read())["output_ids"]) == 20
        assert connection.sock is not None
        assert connection.sock.recv(1) == b""
        connection.close()


def test_fault_hits_every_third_call_twice(worker: httpx.Client) -> None:
    set_fault(worker, fault="http_error", every=3, calls=2)
    statuses = [worker.post("/generate", json=BODY).status_code for _ in range(9)]
    assert statuses == [200, 200, 500, 200, 200, 500, 200, 200, 200]


def test_fault_can_be_set_from_the_start() -> None:
    with running_worker(**INSTANT, fault="http_error", fault_calls=1, fault_every=2) as client:
        assert [client.post("/generate", json=BODY).status_code for _ in range(4)] == [200, 500, 200, 200]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"fault": "explode"}, "explode"),
        ({"fault": "hang", "call": 1}, "call"),
        ({"fault": "hang", "calls": 0}, "calls"),
        ({"calls": 1}, "fault"),
    ],
)
def test_unknown_fault_or_field_is_named(worker: httpx.Client, fault: dict[str, Any], told: str) -> None:
    reply = worker.post("/simulator/faults", json=fault)
    assert reply.status_code == 400
    assert told in reply.json()["error"]["message"]


def test_too_many_faults_are_refused(worker: httpx.Client) -> None:
    statuses = [
        worker.post("/simulator/faults", json={"fault": "hang", "path": "/nowhere"}).status_code
        for _ in range(MAX_FAULTS + 1)
    ]
    assert statuses == [200] * MAX_FAULTS + [400]


def test_every_fault_is_described() -> None:
    import espalier.simulator.faults as module

    for name in FAULT_NAMES:
        assert f"    {name} " in (module.__doc__ or "")
