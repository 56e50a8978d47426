"""Calls and replies on their way through a router, in front of scripted workers."""

import asyncio
import contextlib
import socket
import threading

import httpx
import pytest

from espalier.calls import Call, Reply
from espalier.router.asgi_exchange import Message, Scope
from espalier.router.data_plane import DataPlane
from espalier.router.ledger import Ledger
from espalier.router.request_id import RequestIds
from tests.router.running import connection_to, router, until, worker_of
from tests.router.scripted import answering, reply, scripted_worker

NAMING = ("tests.router.plugins:Naming",)


def test_reply_reaches_the_client_as_the_worker_sent_it() -> None:
    body = b'{"text": "caf\\u00e9",  "x": 1e2}'
    fields = b"Content-Type: application/json\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Worker: w\r\n"
    with (
        scripted_worker(answering(reply(body, status="418 I'm a teapot", fields=fields))) as worker,
        router(worker) as client,
    ):
        answer = client.post("/generate", content=b"{}")
    assert (answer.status_code, answer.content) == (418, body)
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert answer.headers["x-worker"] == "w"
    assert answer.headers.get_list("content-length") == [str(len(body))]


def test_request_reaches_the_worker_as_the_client_sent_it() -> None:
    seen: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        seen.append(request)
        client.sendall(reply())
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        client.request(
            "PATCH", "/any/p%20th?a=1&a=2", content=b"\x00raw", headers=[("X-A", "1"), ("X-A", "2")]
        )
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"PATCH /any/p%20th?a=1&a=2 HTTP/1.1"
    assert [line for line in lines if line.lower().startswith(b"x-a:")] == [b"x-a: 1", b"x-a: 2"]
    assert b"host: " + worker.removeprefix("http://").encode() in lines
    assert body == b"\x00raw"


def test_head_request_is_answered_with_the_length_and_no_body() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        assert request.startswith(b"HEAD ")
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n")
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        answer = client.head("/model_info")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "42", b"")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_bodiless_status_with_a_length_leaves_both_connections_usable(status: str) -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        is_first = request.startswith(b"GET /first ")
        client.sendall(
            b"HTTP/1.1 %s\r\netag: a\r\ncontent-length: 5\r\n\r\n" % status.encode()
            if is_first
            else reply(b"second")
        )
        return True

    with (
        scripted_worker(script) as worker,
        router(worker) as client,
        connection_to(client) as bare,
    ):
        bare.sendall(b"GET /first HTTP/1.1\r\nhost: r\r\n\r\nGET /second HTTP/1.1\r\nhost: r\r\n\r\n")
        received = b""
        while not received.endswith(b"second"):
            received += bare.recv(65536)
    first, _, second = received.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 %s" % status.encode())
    assert b"etag: a" in first
    assert b"content-length" not in first.lower()
    assert second.startswith(b"HTTP/1.1 200 OK")


def test_stream_passes_as_it_arrives_and_holds_the_lease_to_its_end() -> None:
    go_on = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            b"9\r\ndata: 1\n\n\r\n"
        )
        assert go_on.wait(20)
        client.sendall(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        with client.stream("POST", "/generate") as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == b"data: 1\n\n"
            assert worker_of(client)["load"] == 1
            go_on.set()
            assert b"".join(chunks) == b"data: 2\n\n"
        assert worker_of(client)["load"] == 0


def test_stream_that_the_worker_cuts_short_is_not_ended_well() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        return False

    with scripted_worker(script) as worker, router(worker) as client:
        with pytest.raises(httpx.RemoteProtocolError), client.stream("POST", "/generate") as answer:
            list(answer.iter_raw())
        assert worker_of(client)["load"] == 0


def test_stream_is_closed_where_the_client_cannot_be_written_to() -> None:
    class Endless:
        is_closed = False

        def __aiter__(self) -> "Endless":
            return self

        async def __anext__(self) -> bytes:
            return b"more"

        async def aclose(self) -> None:
            self.is_closed = True

    body = Endless()

    async def handle(call: Call) -> Reply:
        return Reply(status=200, headers=[], body=body)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise BrokenPipeError

    scope: Scope = {"method": "GET", "path": "/g", "query_string": b"", "headers": []}
    plane = DataPlane(handle, max_body_bytes=10, request_ids=RequestIds(), on_end=Ledger().add)
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(plane(scope, receive, send))
    assert body.is_closed
    assert plane.in_flight == 0


def test_large_reply_arrives_whole() -> None:
    body = bytes(range(256)) * 50_000
    with scripted_worker(answering(reply(body))) as worker, router(worker) as client:
        assert client.get("/big").content == body


def test_client_that_hangs_up_frees_the_worker() -> None:
    gone = threading.Event()
    begun = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        begun.set()
        if client.recv(1) == b"":
            gone.set()
        return False

    with scripted_worker(script) as worker, router(worker) as client:
        with connection_to(client) as impatient:
            impatient.sendall(b"POST /generate HTTP/1.1\r\nhost: r\r\ncontent-length: 2\r\n\r\n{}")
            assert begun.wait(20)
        assert gone.wait(5)
        assert worker_of(client)["load"] == 0
        assert "espalier_clients_hung_up_total 1.0" in client.get("/metrics").text


def test_client_that_hangs_up_amid_its_request_is_no_call() -> None:
    with (
        scripted_worker(answering(reply())) as worker,
        router(worker) as client,
    ):
        with connection_to(client) as impatient:
            impatient.sendall(b"POST /generate HTTP/1.1\r\nhost: r\r\ncontent-length: 2\r\n\r\n{")
            until(lambda: "espalier_in_flight 1.0" in client.get("/metrics").text)
        until(lambda: "espalier_in_flight 0.0" in client.get("/metrics").text)
        assert "espalier_replies_total{" not in client.get("/metrics").text


@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_over_the_limit_is_413(is_chunked: bool) -> None:
    with (
        scripted_worker(answering(reply())) as worker,
        router(worker, max_payload_size=10) as client,
    ):
        body = iter([b"x" * 6, b"x" * 6]) if is_chunked else b"x" * 12
        answer = client.post("/generate", content=body)
        assert answer.status_code == 413
        assert "--max-payload-size" in answer.json()["error"]["message"]
        assert client.post("/generate", content=b"x" * 10).status_code == 200


def test_body_that_is_declared_too_long_is_refused_before_it_is_sent() -> None:
    with router(max_payload_size=10) as client, connection_to(client) as bare:
        bare.sendall(b"POST /generate HTTP/1.1\r\nhost: r\r\ncontent-length: 11\r\n\r\n")
        assert bare.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_request_id_is_the_clients_own_or_a_new_one() -> None:
    with router(middleware=NAMING) as client:
        own = client.post("/g", content=b"{}", headers={"X-Request-Id": "mine"}).json()["request_id"]
        made = [client.post("/g", content=b"{}").json()["request_id"] for _ in range(3)]
    assert own == "mine"
    assert len(set(made)) == 3
    assert all(made)


def test_body_that_a_middleware_cannot_read_is_400() -> None:
    with router(middleware=NAMING) as client:
        for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 100_000):
            answer = client.post("/g", content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


def test_middleware_of_ones_own_sees_calls_and_its_failure_ends_only_its_call() -> None:
    with (
        scripted_worker(answering(reply(b"worker"))) as worker,
        router(worker, middleware=("tests.router.plugins:Shouting",)) as client,
    ):
        assert client.post("/generate", content=b"hi").text == "WORKER"
        failed = client.post("/generate", content=b"fail")
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
        assert client.get("/shouted").json() == {"shouted": 1}
