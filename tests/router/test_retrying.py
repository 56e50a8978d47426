"""Which calls are sent again, to whom, how often, and which must not be."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.router.running import closed_port_url, router, until
from tests.router.scripted import Script, answering, reply, scripted_worker

FULL = reply(b'{"object":"error","message":"The request queue is full.","code":503}', status="503 Busy")
ONE = {"text": "hi"}


class Scripted:
    """A worker that keeps what it was asked and answers `/generate` by one script after the other.

    The last one stays.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self._lock = threading.Lock()
        self.bodies: list[Any] = []
        self.aborted: list[str] = []

    def __call__(self, client: socket.socket, request: bytes) -> bool:
        head, _, body = request.partition(b"\r\n\r\n")
        if head.startswith(b"POST /abort_request "):
            self.aborted.append(json.loads(body)["rid"])
            client.sendall(reply(b""))
            return True
        with self._lock:
            self.bodies.append(json.loads(body) if body else None)
            script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        return script(client, request)


def breaking_off(client: socket.socket, request: bytes) -> bool:
    return False


def half(client: socket.socket, request: bytes) -> bool:
    client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
    return False


def half_a_stream(client: socket.socket, request: bytes) -> bool:
    client.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
    return False


def closing_after(answer: bytes) -> Script:
    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(answer)
        return False

    return script


def attempts(answer: httpx.Response) -> int:
    return int(answer.headers["x-espalier-attempts"])


def retries(client: httpx.Client, reason: str) -> bool:
    return f'espalier_retries_total{{reason="{reason}"}}' in client.get("/metrics").text


def test_call_that_needs_no_retry_says_so() -> None:
    with scripted_worker(answering(reply())) as worker, router(worker) as client:
        assert attempts(client.post("/generate", json=ONE)) == 1


def test_refused_call_of_any_kind_goes_to_the_next_worker_at_once() -> None:
    with (
        closed_port_url() as dead,
        scripted_worker(answering(reply(b"alive"))) as alive,
        router(dead, alive) as client,
    ):
        answer = client.post("/v1/embeddings", json={"input": "x"})
        assert (answer.text, attempts(answer)) == ("alive", 2)
        assert retries(client, "connect_failed")


def test_full_queue_sends_the_call_to_the_next_worker_under_a_new_rid() -> None:
    busy, free = Scripted(answering(FULL)), Scripted(answering(reply(b"done")))
    with scripted_worker(busy) as first, scripted_worker(free) as second, router(first, second) as client:
        answer = client.post("/generate", json={"rid": "mine", **ONE})
        assert (answer.text, attempts(answer)) == ("done", 2)
        assert retries(client, "queue_full")
    assert len({busy.bodies[0]["rid"], free.bodies[0]["rid"], "mine"}) == 3
    assert busy.aborted == []


def test_fleet_that_is_full_is_asked_again_after_a_while_and_in_the_end_passed_on() -> None:
    worker = Scripted(answering(FULL), answering(FULL), answering(reply(b"done")))
    settings = {"retry_max_retries": 2, "retry_initial_backoff_ms": 1}
    with scripted_worker(worker) as url, router(url, **settings) as client:
        answer = client.post("/generate", json=ONE)
        assert (answer.text, attempts(answer)) == ("done", 3)
    worker = Scripted(answering(FULL))
    with scripted_worker(worker) as url, router(url, **settings) as client:
        answer = client.post("/generate", json=ONE)
        assert (answer.status_code, attempts(answer)) == (503, 3)
        assert answer.json()["message"] == "The request queue is full."


@pytest.mark.parametrize("script", [breaking_off, half])
def test_call_that_broke_is_aborted_and_sent_to_another_worker_under_a_new_rid(script: Script) -> None:
    broken, good = Scripted(script), Scripted(answering(reply(b"done")))
    with scripted_worker(broken) as first, scripted_worker(good) as second, router(first, second) as client:
        answer = client.post("/generate", json=ONE)
        assert (answer.text, attempts(answer)) == ("done", 2)
        assert retries(client, "connection_broken")
        assert set(broken.aborted) == {broken.bodies[0]["rid"]}
    assert broken.bodies[0]["rid"] != good.bodies[0]["rid"]
    assert good.aborted == []


def test_stream_that_has_begun_is_broken_off_and_never_sent_again() -> None:
    broken, good = Scripted(half_a_stream), Scripted(answering(reply(b"done")))
    with scripted_worker(broken) as first, scripted_worker(good) as second, router(first, second) as client:
        with (
            pytest.raises(httpx.RemoteProtocolError),
            client.stream("POST", "/generate", json={**ONE, "stream": True}) as answer,
        ):
            answer.read()
        until(lambda: set(broken.aborted) == {broken.bodies[0]["rid"]})
    assert good.bodies == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "x"}),
        ("/generate", {"text": "x", "sampling_params": {"n": 2}}),
        ("/open_session", {"capacity_of_str_len": 1}),
    ],
)
def test_call_that_cannot_be_aborted_by_name_is_not_sent_again(path: str, body: dict[str, Any]) -> None:
    broken, good = Scripted(breaking_off), Scripted(answering(reply(b"done")))
    with scripted_worker(broken) as first, scripted_worker(good) as second, router(first, second) as client:
        answer = client.post(path, json=body)
        assert (answer.status_code, attempts(answer)) == (502, 1)
    assert good.bodies == []


def test_kept_connection_that_was_closed_meanwhile_costs_no_call() -> None:
    worker = Scripted(closing_after(reply(b"first")), answering(reply(b"second")))
    with scripted_worker(worker) as url, router(url) as client:
        assert client.post("/generate", json=ONE).text == "first"
        assert client.post("/generate", json=ONE).text == "second"


def test_kept_connection_that_dies_under_a_call_is_followed_by_one_fresh_one() -> None:
    worker = Scripted(answering(reply(b"first")), breaking_off, answering(reply(b"third")))
    with scripted_worker(worker) as url, router(url) as client:
        assert client.post("/generate", json=ONE).text == "first"
        answer = client.post("/generate", json=ONE)
        assert (answer.text, attempts(answer)) == ("third", 2)
        assert retries(client, "connection_stale")
        assert set(worker.aborted) == {worker.bodies[1]["rid"]}
    assert worker.bodies[1]["rid"] != worker.bodies[2]["rid"]


def test_first_byte_that_does_not_come_sends_the_call_elsewhere() -> None:
    released = threading.Event()

    def hang(client: socket.socket, request: bytes) -> bool:
        return released.wait(20)

    hanging, good = Scripted(hang), Scripted(answering(reply(b"done")))
    with (
        scripted_worker(hanging) as first,
        scripted_worker(good) as second,
        router(first, second, first_byte_timeout_secs=0.1) as client,
    ):
        answer = client.post("/generate", json=ONE)
        released.set()
        assert (answer.text, attempts(answer)) == ("done", 2)
        assert set(hanging.aborted) == {hanging.bodies[0]["rid"]}


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"request_timeout_secs": 0.1}, "upstream_timeout"),
        ({"first_byte_timeout_secs": 0.1, "disable_retries": True}, "first_byte_timeout"),
    ],
)
def test_deadline_is_504_that_says_which_and_aborts(settings: dict[str, Any], code: str) -> None:
    released = threading.Event()

    def hang(client: socket.socket, request: bytes) -> bool:
        return released.wait(20)

    worker = Scripted(hang)
    with scripted_worker(worker) as url, router(url, **settings) as client:
        answer = client.post("/generate", json=ONE)
        assert (answer.status_code, answer.json()["error"]["code"], attempts(answer)) == (504, code, 1)
        until(lambda: set(worker.aborted) == {worker.bodies[0]["rid"]})
        released.set()


def test_all_attempts_together_keep_to_the_deadline_of_the_whole() -> None:
    released = threading.Event()

    def hang(client: socket.socket, request: bytes) -> bool:
        return released.wait(20)

    worker = Scripted(hang)
    settings: dict[str, Any] = {
        "request_timeout_secs": 0.35,
        "first_byte_timeout_secs": 0.1,
        "retry_max_retries": 1000,
        "retry_initial_backoff_ms": 0,
    }
    with scripted_worker(worker) as url, router(url, **settings) as client:
        answer = client.post("/generate", json=ONE)
        assert answer.json()["error"]["code"] == "upstream_timeout"
        assert 2 <= attempts(answer) <= 5
        released.set()


def test_retries_can_be_turned_off() -> None:
    with (
        closed_port_url() as dead,
        scripted_worker(answering(reply())) as alive,
        router(dead, alive, disable_retries=True) as client,
    ):
        answer = client.post("/generate", json=ONE)
        assert (answer.status_code, attempts(answer)) == (502, 1)


def test_call_whose_client_aborts_it_is_not_sent_again() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait_and_break(client: socket.socket, request: bytes) -> bool:
        begun.set()
        go_on.wait(20)
        return False

    broken, good = Scripted(wait_and_break), Scripted(answering(reply(b"done")))
    answers: list[httpx.Response] = []
    with scripted_worker(broken) as first, scripted_worker(good) as second, router(first, second) as client:
        call = _in_thread(lambda: answers.append(client.post("/generate", json={"rid": "mine", **ONE})))
        assert begun.wait(20)
        client.post("/abort_request", json={"rid": "mine"})
        go_on.set()
        call.join()
    assert answers[0].status_code == 502
    assert good.bodies == []


def test_aborted_reply_is_passed_on_as_it_is() -> None:
    partial = b'{"text":"par","output_ids":[1],"meta_info":{"finish_reason":{"type":"abort"}}}'
    with scripted_worker(answering(reply(partial))) as worker, router(worker) as client:
        answer = client.post("/generate", json=ONE)
        assert (answer.status_code, answer.content, attempts(answer)) == (200, partial, 1)


def _in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_router_that_has_no_socket_left_says_so_and_blames_no_worker() -> None:
    code = (
        "import json, resource, socket, sys, uvloop\n"
        "from espalier.errors import HttpError\n"
        "from espalier.calls import Call\n"
        "from espalier.router.upstream import Upstream\n"
        "from espalier.router.origin import Origin\n"
        "call = Call(method='GET', path='/', target=b'/', headers=[], body=b'', request_id='r')\n"
        "async def ask():\n"
        "    origin, held = Origin.parse(sys.argv[1]), []\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "    try:\n"
        "        while True: held.append(socket.socket())\n"
        "    except OSError: pass\n"
        "    upstream = Upstream(connect_timeout_s=5, request_timeout_s=5)\n"
        "    try: await upstream.send(origin, call)\n"
        "    except HttpError as error: print(error.status, error.code, error.retry_after_s)\n"
        "uvloop.run(ask())\n"
    )
    with scripted_worker(answering(reply())) as url:
        told = subprocess.run(
            [sys.executable, "-c", code, url], capture_output=True, text=True, check=False, timeout=60
        )
    assert told.stdout, told.stderr
    assert told.stdout.split() == ["503", "out_of_sockets", "1"]
