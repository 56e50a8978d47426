"""What passes through the router is what was sent, whatever it is and however it comes."""

import gzip
import select
import socket
import threading
import time

import pytest

from tests.router.running import connection_to, router
from tests.router.scripted import answering, reply, scripted_worker

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MEBIBYTE = 1 << 20


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_method_reaches_the_worker(method: str) -> None:
    seen: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        seen.append(request)
        client.sendall(reply(b"ok", fields=b"allow: GET, POST\r\n"))
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        answer = client.request(method, "/some/path")
    assert (answer.status_code, answer.content, answer.headers["allow"]) == (200, b"ok", "GET, POST")
    assert seen[0].startswith(method.encode() + b" /some/path HTTP/1.1\r\n")


def test_compressed_reply_stays_compressed() -> None:
    body = gzip.compress(b"tokens")
    fields = b"content-encoding: gzip\r\nvary: accept-encoding\r\n"
    with (
        scripted_worker(answering(reply(body, fields=fields))) as worker,
        router(worker) as client,
        client.stream("POST", "/generate", json={"rid": "mine", "text": "x"}) as answer,
    ):
        assert b"".join(answer.iter_raw()) == body
        assert (answer.headers["content-encoding"], answer.headers["vary"]) == ("gzip", "accept-encoding")


def test_chunked_request_arrives_whole() -> None:
    seen: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        seen.append(request)
        client.sendall(reply())
        return True

    def chunks() -> "list[bytes]":
        return [b"a" * 70_000, b"b", b"c" * 10]

    with scripted_worker(script) as worker, router(worker) as client:
        assert client.post("/upload", content=iter(chunks())).status_code == 200
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert body == b"".join(chunks())
    assert b"content-length: 70011" in head
    assert b"transfer-encoding" not in head


def test_client_that_waits_to_be_asked_for_its_body_is_asked() -> None:
    with scripted_worker(answering(reply(b"done"))) as worker, router(worker) as client:
        with connection_to(client) as bare:
            bare.sendall(b"POST /x HTTP/1.1\r\nhost: r\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
            assert bare.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
            bare.sendall(b"body")
            told = b""
            while not told.endswith(b"done"):
                told += bare.recv(4096)
        assert told.startswith(b"HTTP/1.1 200 OK\r\n")


def test_body_of_many_mebibytes_reaches_the_worker_whole() -> None:
    lengths: list[int] = []

    def script(client: socket.socket, request: bytes) -> bool:
        lengths.append(len(request.partition(b"\r\n\r\n")[2]))
        client.sendall(reply())
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        client.post("/generate", content=b"x" * (48 * MEBIBYTE))
    assert lengths == [48 * MEBIBYTE]


def test_each_event_is_passed_on_before_the_next_one_is_there() -> None:
    received = threading.Semaphore(0)

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(STREAM_HEAD)
        for number in range(5):
            event = b"data: %d\n\n" % number
            client.sendall(b"%x\r\n%b\r\n" % (len(event), event))
            if not received.acquire(timeout=20):
                return False
        client.sendall(b"0\r\n\r\n")
        return True

    with (
        scripted_worker(script) as worker,
        router(worker) as client,
        client.stream("POST", "/generate", json={"rid": "mine", "text": "x"}) as answer,
    ):
        events = []
        for chunk in answer.iter_bytes():
            events.append(chunk)
            received.release()
    assert events == [b"data: %d\n\n" % number for number in range(5)]


def test_client_that_does_not_read_stops_the_worker_and_not_the_routers_memory() -> None:
    sent_bytes = 0
    total_bytes = 256 * MEBIBYTE

    def script(client: socket.socket, request: bytes) -> bool:
        nonlocal sent_bytes
        client.sendall(STREAM_HEAD)
        client.setblocking(False)
        chunk = b"%x\r\n%b\r\n" % (MEBIBYTE, b"x" * MEBIBYTE)
        idle_since_s = time.monotonic()
        pending = b""
        while sent_bytes < total_bytes and time.monotonic() < idle_since_s + 1.0:
            pending = pending or chunk
            if not select.select([], [client], [], 0.1)[1]:
                continue
            written = client.send(pending)
            pending = pending[written:]
            sent_bytes += written
            idle_since_s = time.monotonic()
        return False

    with scripted_worker(script) as worker, router(worker) as client, connection_to(client) as bare:
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        bare.sendall(b"GET /stream HTTP/1.1\r\nhost: r\r\n\r\n")
        assert bare.recv(16).startswith(b"HTTP/1.1 200")
        deadline_s = time.monotonic() + 20
        before = -1
        while before != sent_bytes:  # until nothing has moved for a second
            assert time.monotonic() < deadline_s
            before = sent_bytes
            select.select([], [], [], 1.2)
        assert 0 < sent_bytes < 32 * MEBIBYTE
