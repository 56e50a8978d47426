"""The short way from uvicorn's parser to the data plane, tested by feeding it bytes."""

import asyncio
import logging
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from espalier.calls import Call, Handler, MiddlewareBase, Reply
from espalier.router.app import KEEP_ALIVE_S, RouterApp, create_app
from espalier.router.protocol import MAX_HEAD_BYTES, RouterProtocol
from espalier.router.settings import RouterSettings
from tests.router.running import DEADLINE_S, connection_to, router, run
from tests.router.scripted import answering, reply, scripted_worker

REQUEST = b"GET /x HTTP/1.1\r\nhost: r\r\n\r\n"
ABORT_ON_CLOSE = struct.pack("ii", 1, 0)

Answer = Callable[[Call], Coroutine[Any, Any, Reply]]


class StrictTransport(asyncio.Transport):
    """Notes what is done with it, and takes no data once it is closing, as uvloop's does not."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.done: list[bytes | str] = []
        self.is_lost = False
        self.closed = asyncio.Event()

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
        self.closed.set()

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")


class Answering(MiddlewareBase):
    """Answers calls itself, by the function that a test gives it."""

    answer: Answer
    seen: list[Call]

    async def __call__(self, call: Call, forward: Handler) -> Reply:  # noqa: ARG002
        Answering.seen.append(call)
        return await Answering.answer(call)


def app_of(answer: Answer, **settings: Any) -> RouterApp:
    Answering.answer, Answering.seen = staticmethod(answer), []
    return create_app(RouterSettings(middleware=("tests.router.test_protocol:Answering",), **settings))


class Wire:
    """A protocol that serves a router over a strict transport."""

    def __init__(self, answer: Answer, *, idle_s: float = KEEP_ALIVE_S, **settings: Any) -> None:
        self.app = app_of(answer, **settings)
        self.app.idle_connections.delay_s = idle_s
        config = uvicorn.Config(self.app, http=RouterProtocol, lifespan="off", log_config=None)
        config.load()
        self.failures: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.transport = StrictTransport()
        self.state = ServerState()
        self.protocol = RouterProtocol(config, self.state, {}, loop)
        self.protocol.connection_made(self.transport)

    async def serve(self, *pieces: bytes) -> list[bytes]:
        """Feed a request in pieces; return what was written once all is served."""
        for piece in pieces:
            self.protocol.data_received(piece)
            await asyncio.sleep(0)
        while self.state.tasks:
            await asyncio.gather(*self.state.tasks)
        return self.written

    @property
    def written(self) -> list[bytes]:
        return [step for step in self.transport.done if isinstance(step, bytes)]


async def hello(call: Call) -> Reply:
    return Reply(status=200, headers=[(b"x-a", b"1"), (b"content-length", b"99")], body=b"hello")


def test_whole_reply_leaves_in_one_write_with_its_length_and_the_request_id() -> None:
    async def test() -> None:
        wire = Wire(hello)
        (written,) = await wire.serve(b"GET /x?q=1 HTTP/1.1\r\nhost: r\r\nx-request-id: mine\r\n\r\n")
        head, _, body = written.partition(b"\r\n\r\n")
        assert head.split(b"\r\n") == [
            *(b"HTTP/1.1 200 OK", b"x-a: 1", b"x-request-id: mine"),
            b"content-length: 5",
        ]
        assert body == b"hello"
        (call,) = Answering.seen
        assert (call.method, call.path, call.target, call.request_id) == ("GET", "/x", b"/x?q=1", "mine")
        assert wire.failures == []

    run(test())


def test_body_in_many_small_pieces_takes_little_more_room_than_it_is_long() -> None:
    pieces = 100_000

    async def wait(call: Call) -> Reply:
        raise AssertionError(call)

    async def test() -> None:
        wire = Wire(wait)
        head = b"POST /x HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n"
        wire.protocol.data_received(head)
        some = b"2\r\nab\r\n" * 100
        tracemalloc.start()
        for _ in range(pieces // 100):
            wire.protocol.data_received(some)
        taken_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken_bytes < 3 * 2 * pieces
        wire.transport.is_lost = True
        wire.protocol.connection_lost(None)
        await asyncio.gather(*wire.state.tasks)

    run(test())


def test_long_reply_and_the_next_request_on_the_same_connection() -> None:
    async def test() -> None:
        async def long(call: Call) -> Reply:
            return Reply(status=200, headers=[], body=b"x" * 100_000)

        wire = Wire(long)
        for _ in range(2):
            await wire.serve(REQUEST)
        assert [written.endswith(b"x" * 100_000) for written in wire.written] == [True, True]

    run(test())


def test_request_is_the_same_however_its_bytes_come() -> None:
    request = b"POST /x HTTP/1.1\r\nhost: r\r\ncontent-length: 6\r\n\r\nabcdef"

    async def test() -> None:
        for size in (1, 7, len(request) - 3, len(request)):
            wire = Wire(hello)
            await wire.serve(*(request[at : at + size] for at in range(0, len(request), size)))
            assert [call.body for call in Answering.seen] == [b"abcdef"]
            assert len(wire.written) == 1

    run(test())


class Chunks:
    """A stream of two chunks, and an empty one between them."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in (b"first", b"", b"second"):
            yield chunk
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        pass


async def stream(call: Call) -> Reply:
    return Reply(status=200, headers=[], body=Chunks())


def test_chunks_of_a_stream_leave_as_they_come() -> None:
    async def test() -> None:
        wire = Wire(stream)
        head, *chunks = await wire.serve(REQUEST)
        assert b"\r\ntransfer-encoding: chunked\r\n\r\n" in head
        assert chunks == [b"5\r\nfirst\r\n", b"6\r\nsecond\r\n", b"0\r\n\r\n"]

    run(test())


def test_stream_to_a_client_of_http_1_0_is_not_chunked_and_ends_with_the_connection() -> None:
    async def test() -> None:
        wire = Wire(stream)
        head, *chunks = await wire.serve(b"GET /x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        assert b"chunked" not in head
        assert b"\r\nconnection: close\r\n" in head
        assert (chunks, wire.transport.done[-1]) == ([b"first", b"second"], "close")

    run(test())


def test_reply_to_a_client_that_wants_no_more_closes_after_its_last_byte() -> None:
    async def test() -> None:
        wire = Wire(hello)
        await wire.serve(b"GET /x HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n")
        written, closed = wire.transport.done
        assert isinstance(written, bytes)
        assert b"\r\nconnection: close\r\n" in written
        assert closed == "close"

    run(test())


def test_body_over_the_limit_is_refused_and_the_connection_goes_on() -> None:
    async def test() -> None:
        for head in (b"content-length: 8\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n8\r\n"):
            wire = Wire(hello, max_payload_size=4)
            await wire.serve(b"POST /x HTTP/1.1\r\nhost: r\r\n" + head + b"abcdefgh")
            if b"chunked" in head:
                await wire.serve(b"\r\n0\r\n\r\n")
            await wire.serve(REQUEST)
            refused, served = wire.written
            assert refused.startswith(b"HTTP/1.1 413 ")
            assert served.endswith(b"hello")
            assert len(Answering.seen) == 1

    run(test())


def test_client_that_hangs_up_ends_its_call() -> None:
    ended: list[str] = []

    async def wait(call: Call) -> Reply:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(call.path)
            raise
        raise AssertionError

    async def test() -> None:
        for request in (REQUEST, b"POST /x HTTP/1.1\r\nhost: r\r\ncontent-length: 6\r\n\r\nabc"):
            wire = Wire(wait)
            wire.protocol.data_received(request)
            await asyncio.sleep(0)
            wire.transport.is_lost = True
            wire.protocol.connection_lost(None)
            await asyncio.gather(*wire.state.tasks)
            assert wire.app.data_plane.in_flight == 0
            assert (wire.written, wire.failures) == ([], [])
        assert ended == ["/x"]
        assert wire.app.data_plane.hung_up_total == 0

    run(test())


def test_client_that_hangs_up_on_its_pipelined_requests_ends_the_one_that_runs() -> None:
    async def wait(call: Call) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async def test() -> None:
        wire = Wire(wait)
        wire.protocol.data_received(REQUEST * 3)
        await asyncio.sleep(0)
        wire.transport.is_lost = True
        wire.protocol.connection_lost(None)
        await asyncio.gather(*wire.state.tasks)
        assert (wire.app.data_plane.in_flight, wire.app.data_plane.hung_up_total) == (0, 1)

    run(test())


def test_header_with_a_line_break_is_no_reply(caplog: pytest.LogCaptureFixture) -> None:
    async def split(call: Call) -> Reply:
        return Reply(status=200, headers=[(b"x-a", b"1\r\nx-b: 2")], body=b"")

    async def test() -> None:
        (written,) = await Wire(split).serve(REQUEST)
        assert written.startswith(b"HTTP/1.1 500 ")
        assert b"x-b" not in written

    run(test())
    assert "line break" in caplog.text
    caplog.clear()


def test_stream_that_fails_half_way_is_broken_off(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("a bug")

        async def aclose(self) -> None:
            pass

    async def fail(call: Call) -> Reply:
        return Reply(status=200, headers=[], body=Failing())

    async def test() -> None:
        wire = Wire(fail)
        *_, chunk = await wire.serve(REQUEST)
        assert chunk == b"4\r\nhalf\r\n"
        assert wire.transport.done[-1] == "close"

    run(test())
    assert "event=reply_failed" in caplog.text
    caplog.clear()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /x%41 HTTP/1.1\r\nhost: r\r\n\r\n",
        b"GET /x HTTP/1.0\r\n\r\n",
        b"GET http://r/x HTTP/1.1\r\nhost: r\r\n\r\n",
        REQUEST + REQUEST,
    ],
)
def test_what_is_not_plain_goes_uvicorns_way(request_bytes: bytes) -> None:
    async def test() -> None:
        wire = Wire(hello)
        written = b"".join(await wire.serve(request_bytes))
        assert written.count(b"hello") == request_bytes.count(b"GET ")
        assert {call.path for call in Answering.seen} <= {"/x", "/xA"}

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


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /x HTTP/1.1\r\nhost: r\r\nx-a: ",
        b"GET /",
        b"GET /x HTTP/1.1\r\nhost: r\r\n" + b"x-a: 1\r\n" * 1000,
        b"POST /x HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-trailer: ",
    ],
)
def test_head_without_end_is_refused_instead_of_kept(begin: bytes) -> None:
    async def test() -> None:
        wire = Wire(hello)
        wire.protocol.data_received(begin)
        for _ in range(MAX_HEAD_BYTES // 1024 - len(begin) // 1024 - 1):
            wire.protocol.data_received(b"x" * 1024)
        assert not wire.transport.is_closing()
        wire.protocol.data_received(b"x" * 4096)
        (refused,) = wire.written
        assert refused.startswith(b"HTTP/1.1 431 ")
        assert b'"code":"head_too_large"' in refused
        assert wire.transport.done[-1] == "close"
        wire.protocol.connection_lost(None)
        await wire.serve()

    run(test())


def test_trailers_are_no_headers() -> None:
    async def test() -> None:
        wire = Wire(hello)
        await wire.serve(
            b"POST /x HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n",
            b"3\r\nabc\r\n0\r\nx-smg-routing-key: late\r\n\r\n",
        )
        (call,) = Answering.seen
        assert call.body == b"abc"
        assert call.header(b"x-smg-routing-key") is None

    run(test())


def test_what_is_not_http_is_told_so_in_json_and_ends_the_connection() -> None:
    async def test() -> None:
        wire = Wire(hello)
        wire.protocol.data_received(b"no request\r\n\r\n")
        (refused,) = wire.written
        assert refused.startswith(b"HTTP/1.1 400 ")
        assert b'{"error":{"message":' in refused
        assert wire.transport.done[-1] == "close"

    run(test())


@pytest.mark.parametrize("framing", [b"content-length: 31", b"transfer-encoding: chunked"])
def test_body_of_a_request_for_another_protocol_is_never_taken_for_a_request(framing: bytes) -> None:
    async def test() -> None:
        wire = Wire(hello)
        await wire.serve(
            b"POST /x HTTP/1.1\r\nhost: r\r\nconnection: upgrade\r\nupgrade: h2c\r\n%b\r\n\r\n" % framing,
            b"GET /smuggled HTTP/1.1\r\nx:\r\n\r\n",
        )
        (refused,) = wire.written
        assert refused.startswith(b"HTTP/1.1 400 ")
        assert b"leave out the header Upgrade" in refused
        assert Answering.seen == []
        assert wire.transport.done[-1] == "close"

    run(test())


def test_offer_of_another_protocol_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        wire = Wire(hello)
        await wire.serve(b"GET /x HTTP/1.1\r\nhost: r\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        await wire.serve(REQUEST)
        assert len(Answering.seen) == 2

    run(test())
    assert caplog.records == []


def test_client_that_waits_to_send_a_body_that_is_refused_cannot_mistake_the_connection_for_free() -> None:
    async def test() -> None:
        wire = Wire(hello, max_payload_size=4)
        (refused,) = await wire.serve(
            b"POST /x HTTP/1.1\r\nhost: r\r\nexpect: 100-continue\r\ncontent-length: 8\r\n\r\n"
        )
        assert refused.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nconnection: close\r\n" in refused
        assert wire.transport.done[-1] == "close"

    run(test())


def test_client_that_does_not_read_its_replies_is_not_served_more() -> None:
    async def test() -> None:
        wire = Wire(hello)
        await wire.serve(REQUEST)
        wire.protocol.pause_writing()
        wire.protocol.data_received(REQUEST)
        for _ in range(50):
            await asyncio.sleep(0)
        assert (len(Answering.seen), len(wire.written)) == (2, 1)
        wire.protocol.resume_writing()
        assert len(await wire.serve()) == 2

    run(test())


@pytest.mark.parametrize(
    "half", [b"", b"GET /x HT", b"POST /x HTTP/1.1\r\nhost: r\r\ncontent-length: 6\r\n\r\nabc", REQUEST]
)
def test_connection_that_serves_nothing_is_closed_after_a_while(half: bytes) -> None:
    async def test() -> None:
        wire = Wire(hello, idle_s=0.01)
        if half:
            wire.protocol.data_received(half)
        async with asyncio.timeout(DEADLINE_S):
            await wire.transport.closed.wait()
        wire.protocol.connection_lost(None)
        await wire.serve()
        assert wire.app.data_plane.in_flight == 0

    run(test())
