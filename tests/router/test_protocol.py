"""Replies leave in one write; the protocol is tested by feeding it requests."""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from espalier.router.data_plane import Receive, Scope, Send
from espalier.router.protocol import CoalescingProtocol
from tests.router.running import connection_to, router, run
from tests.router.scripted import answering, reply, scripted_worker

REQUEST = b"GET / HTTP/1.1\r\nhost: r\r\n\r\n"
ABORT_ON_CLOSE = struct.pack("ii", 1, 0)

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class StrictTransport(asyncio.Transport):
    """Notes what is done with it, and takes no data once it is closing, as uvloop's does not."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.done: list[bytes | str] = []
        self.is_lost = False

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write(self, data: Any) -> None:
        if self.is_closing():
            raise RuntimeError("the transport is closing")
        self.done.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_lost or "close" in self.done

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def write_eof(self) -> None:
        self.done.append("eof")

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")


class Wire:
    """A protocol that serves `application` over a strict transport."""

    def __init__(self, application: Application) -> None:
        config = uvicorn.Config(application, http=CoalescingProtocol, lifespan="off", log_config=None)
        config.load()
        self.failures: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.transport = StrictTransport()
        self.state = ServerState()
        self.protocol = CoalescingProtocol(config, self.state, {}, loop)
        self.protocol.connection_made(self.transport)

    async def serve(self, request: bytes) -> None:
        """Feed a request; return once it is served and what that left to do is done."""
        self.protocol.data_received(request)
        await asyncio.gather(*self.state.tasks)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


def test_head_and_body_leave_in_one_write() -> None:
    async def test() -> None:
        wire = Wire(hello)
        await wire.serve(REQUEST)
        (written,) = wire.transport.done
        assert isinstance(written, bytes)
        assert written.startswith(b"HTTP/1.1 200 OK\r\n")
        assert written.endswith(b"\r\n\r\nhello")
        assert wire.failures == []

    run(test())


def test_chunks_of_different_turns_leave_as_they_come() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in (b"first", b"second"):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    async def test() -> None:
        wire = Wire(slow)
        await wire.serve(REQUEST)
        writes = [write for write in wire.transport.done if isinstance(write, bytes)]
        assert [b"first" in write for write in writes] == [True, False, False]
        assert [b"second" in write for write in writes] == [False, True, False]

    run(test())


def test_what_was_written_leaves_before_the_connection_closes() -> None:
    async def test() -> None:
        wire = Wire(hello)
        await wire.serve(b"GET / HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n")
        written, closed = wire.transport.done
        assert isinstance(written, bytes)
        assert written.endswith(b"hello")
        assert closed == "close"

    run(test())


def test_what_was_written_leaves_before_the_end_is_told() -> None:
    async def test() -> None:
        wire = Wire(hello)
        wire.protocol.transport.write(b"x")
        wire.protocol.transport.write_eof()
        assert wire.transport.done == [b"x", "eof"]

    run(test())


def test_aborted_connection_writes_nothing_more() -> None:
    async def test() -> None:
        wire = Wire(hello)
        wire.protocol.transport.write(b"x")
        wire.protocol.transport.abort()
        await asyncio.sleep(0)
        assert wire.transport.done == ["abort"]

    run(test())


def test_connection_lost_after_a_write_is_not_written_to() -> None:
    wires: list[Wire] = []

    async def hello_and_lost(scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        wires[0].transport.is_lost = True
        wires[0].protocol.connection_lost(None)

    async def test() -> None:
        wires.append(Wire(hello_and_lost))
        await wires[0].serve(REQUEST)
        assert [step for step in wires[0].transport.done if isinstance(step, bytes)] == []
        assert wires[0].failures == []

    run(test())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_clients_that_hang_up_on_pipelined_requests_leave_no_trace(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted_worker(answering(reply(b"x" * 50_000))) as worker, router(worker) as client:
        for _ in range(20):
            with connection_to(client) as impatient:
                if how == "reset":
                    impatient.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT_ON_CLOSE)
                impatient.sendall(REQUEST * 20)
                assert impatient.recv(1)
        assert client.get("/generate").content == b"x" * 50_000
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
