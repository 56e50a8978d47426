"""Which worker gets a call, and what becomes of the call when the worker fails."""

import socket
import threading

import pytest

from tests.router.running import closed_port_url, router, until, worker_of
from tests.router.scripted import answering, reply, scripted_worker

UNKNOWN_HOST = "http://nowhere.invalid:1"
"""A host that no resolver knows: RFC 2606 reserves the name for this."""


def test_calls_rotate_over_the_workers() -> None:
    with (
        scripted_worker(answering(reply(b"1"))) as first,
        scripted_worker(answering(reply(b"2"))) as second,
        router(first, second) as client,
    ):
        assert [client.post("/generate").text for _ in range(4)] == ["1", "2", "1", "2"]


def test_no_workers_is_503_with_retry_after() -> None:
    with router() as client:
        answer = client.post("/generate", json={"text": "hi"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "no_available_workers"
    assert "/add_worker" in answer.json()["error"]["message"]


def test_dead_worker_is_502_and_after_three_refusals_503() -> None:
    with closed_port_url() as dead, router(dead, health_check_interval_secs=3600) as client:
        assert [client.post("/generate").status_code for _ in range(4)] == [502, 502, 502, 503]
        assert worker_of(client)["status"] == "dead"
        assert worker_of(client)["load"] == 0
        assert "GET /workers" in client.post("/generate").json()["error"]["message"]


def test_refused_connection_sends_the_call_to_the_next_worker() -> None:
    with (
        closed_port_url() as dead,
        scripted_worker(answering(reply(b"alive"))) as alive,
        router(dead, alive) as client,
    ):
        assert [client.post("/generate").text for _ in range(6)] == ["alive"] * 6


def test_worker_whose_host_is_unknown_is_502_and_dead_after_three_calls() -> None:
    with router(UNKNOWN_HOST, health_check_interval_secs=3600) as client:
        answer = client.post("/generate")
        assert answer.status_code == 502
        assert "nowhere.invalid:1 took no connection" in answer.json()["error"]["message"]
        assert [client.post("/generate").status_code for _ in range(3)] == [502, 502, 503]
        assert worker_of(client)["status"] == "dead"


def test_worker_whose_host_is_unknown_leaves_the_call_to_the_next_one() -> None:
    with (
        scripted_worker(answering(reply(b"alive"))) as alive,
        router(UNKNOWN_HOST, alive) as client,
    ):
        assert [client.post("/generate").text for _ in range(6)] == ["alive"] * 6
        assert worker_of(client)["status"] == "dead"


def test_each_worker_is_asked_at_most_once_for_a_call() -> None:
    with (
        closed_port_url() as first,
        closed_port_url() as second,
        router(first, second, health_check_interval_secs=3600) as client,
    ):
        assert client.post("/generate").status_code == 502
        assert [worker["status"] for worker in client.get("/workers").json()["workers"]] == ["suspect"] * 2
        assert [client.post("/generate").status_code for _ in range(3)] == [502, 502, 503]


def test_worker_that_breaks_off_is_502_and_is_not_asked_again() -> None:
    requests = 0

    def script(client: socket.socket, request: bytes) -> bool:
        nonlocal requests
        requests += 1
        return False

    with (
        scripted_worker(script) as worker,
        scripted_worker(answering(reply())) as other,
        router(worker, other) as client,
    ):
        answer = client.post("/generate")
        assert answer.status_code == 502
        assert "closed the connection" in answer.json()["error"]["message"]
        assert worker_of(client)["load"] == 0
    assert requests == 1


@pytest.mark.parametrize("status", ["999 Odd", "99 Low"])
def test_worker_with_a_status_that_http_does_not_know_is_502(status: str) -> None:
    with scripted_worker(answering(reply(status=status))) as worker, router(worker) as client:
        answer = client.post("/generate")
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
        assert "not HTTP" in answer.json()["error"]["message"]
        assert worker_of(client)["load"] == 0


def test_stream_that_a_middleware_drops_gives_its_worker_back() -> None:
    gone = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        if client.recv(1) == b"":
            gone.set()
        return False

    with (
        scripted_worker(script) as worker,
        router(worker, middleware=("tests.router.plugins:Dropping",)) as client,
    ):
        assert client.post("/generate").status_code == 500
        until(lambda: worker_of(client)["load"] == 0)
        assert gone.wait(20)
