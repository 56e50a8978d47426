"""The connection is tested by feeding bytes: no socket is involved."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from espalier.calls import ByteStream, Reply
from espalier.errors import UpstreamError, UpstreamTimeout
from espalier.router.connection import (
    HIGH_WATER_BYTES,
    MAX_HEAD_FIELDS,
    WHOLE_BODY_MAX_BYTES,
    Connection,
    Deadlines,
)
from espalier.router.failures import BetweenBytesTimeout, ConnectionDropped, FirstByteTimeout
from espalier.router.origin import Origin

WORKER = Origin.parse("http://worker:1")
HEAD = b"HTTP/1.1 200 OK\r\n"


class RecordingTransport(asyncio.Transport):
    """Keeps what is written and whether reading is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reads_paused = False
        self.is_aborted = False
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.reads_paused = True

    def resume_reading(self) -> None:
        self.reads_paused = False

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        self.is_closed = True


class Wire:
    """A connection, its transport, and what the connection said at the end of each exchange."""

    def __init__(self, timeout_s: float = 60.0, **deadlines_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.connection = Connection(WORKER, loop, Deadlines(request_s=timeout_s, **deadlines_s))
        self.transport = RecordingTransport()
        self.connection.connection_made(self.transport)
        self.ended = 0

    def begin(self, *, head_only: bool = False, spent_s: float = 0.0) -> "asyncio.Task[Reply]":
        def on_end(connection: Connection) -> None:
            self.ended += 1

        exchange = self.connection.exchange(
            b"GET / HTTP/1.1\r\n\r\n", b"", head_only=head_only, on_end=on_end, spent_s=spent_s
        )
        return asyncio.ensure_future(exchange)

    async def feed(self, data: bytes) -> None:
        await asyncio.sleep(0)
        self.connection.data_received(data)


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


async def read(reply: Reply) -> bytes:
    return await reply.read()


def stream_of(reply: Reply) -> ByteStream:
    assert not isinstance(reply.body, bytes)
    return reply.body


def test_whole_reply_in_single_bytes() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        for byte in b"HTTP/1.1 201 Made\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\nabc":
            await wire.feed(bytes([byte]))
        reply = await pending
        assert (reply.status, reply.body) == (201, b"abc")
        assert reply.headers == [(b"x-a", b"1"), (b"x-a", b"2"), (b"content-length", b"3")]
        assert wire.ended == 1
        assert wire.connection.is_reusable

    run(test)


def test_hop_by_hop_fields_are_dropped_with_those_that_connection_names() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(
            b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
            b"Transfer-Encoding: chunked\r\nX-End: 1\r\n\r\n0\r\n\r\n"
        )
        assert (await pending).headers == [(b"x-end", b"1")]

    run(test)


def test_interim_replies_are_skipped() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(
            b"HTTP/1.1 100 Continue\r\nX-Early: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        )
        reply = await pending
        assert (reply.status, reply.headers) == (200, [(b"content-length", b"0")])

    run(test)


@pytest.mark.parametrize("field", [b"", b"Content-Length: 5\r\n"])
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_bodiless_statuses_end_at_the_head(status: bytes, field: bytes) -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(b"HTTP/1.1 " + status + b"\r\n" + field + b"\r\n")
        assert (await pending).body == b""
        assert wire.connection.is_reusable
        following = wire.begin()
        await wire.feed(HEAD + b"Content-Length: 1\r\n\r\na")
        assert (await following).body == b"a"

    run(test)


def test_head_reply_ends_at_the_head_whatever_its_length() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin(head_only=True)
        await wire.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
        reply = await pending
        assert (reply.body, reply.header(b"content-length")) == (b"", b"999")

    run(test)


def test_chunked_reply_streams_chunk_by_chunk() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        stream = aiter(stream_of(await pending))
        await wire.feed(b"3\r\nabc\r\n")
        assert await anext(stream) == b"abc"
        assert wire.ended == 0
        await wire.feed(b"2\r\nde\r\n0\r\n\r\n")
        assert await anext(stream) == b"de"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert wire.connection.is_reusable

    run(test)


def test_reply_without_length_ends_with_the_connection() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(b"HTTP/1.1 200 OK\r\n\r\nabc")
        reply = await pending
        wire.connection.connection_lost(None)
        assert await read(reply) == b"abc"
        assert not wire.connection.is_reusable

    run(test)


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
    ],
)
def test_connection_lost_before_the_end_is_an_error_that_tells_whether_the_reply_had_begun(
    part: bytes,
) -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await asyncio.sleep(0)
        if part:
            await wire.feed(part)
        wire.connection.connection_lost(None)
        with pytest.raises(ConnectionDropped) as caught:
            await pending
        assert caught.value.reply_begun is bool(part)
        assert wire.ended == 1

    run(test)


def test_stream_cut_short_raises_after_what_came() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        stream = aiter(stream_of(await pending))
        wire.connection.connection_lost(None)
        assert await anext(stream) == b"abc"
        with pytest.raises(UpstreamError):
            await anext(stream)

    run(test)


def test_reading_pauses_while_the_reader_is_behind_and_resumes() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        size = WHOLE_BODY_MAX_BYTES + 1
        await wire.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        reply = await pending
        await wire.feed(bytes(HIGH_WATER_BYTES + 1))
        assert wire.transport.reads_paused
        stream = aiter(stream_of(reply))
        assert len(await anext(stream)) == HIGH_WATER_BYTES + 1
        assert not wire.transport.reads_paused

    run(test)


def test_connection_that_completed_while_paused_reads_on_for_the_next_exchange() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        size = WHOLE_BODY_MAX_BYTES + 1
        await wire.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        reply = await pending
        await wire.feed(bytes(size))
        assert not wire.transport.reads_paused
        assert wire.connection.is_reusable
        assert len(await read(reply)) == size

    run(test)


def test_giving_up_a_stream_closes_the_connection() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await (await pending).aclose()
        assert wire.transport.is_aborted
        assert wire.ended == 1

    run(test)


def test_cancelled_exchange_closes_the_connection() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await asyncio.sleep(0)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        assert wire.transport.is_aborted

    run(test)


def test_exchange_cancelled_as_its_reply_comes_leaves_the_connection_to_the_next() -> None:
    async def test() -> None:
        wire = Wire()
        cancelled = wire.begin()
        await asyncio.sleep(0)
        following = wire.begin()
        wire.connection.data_received(HEAD + b"Content-Length: 1\r\n\r\na")
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert not wire.transport.is_aborted
        await wire.feed(HEAD + b"Content-Length: 1\r\n\r\nb")
        assert (await following).body == b"b"
        assert wire.ended == 2

    run(test)


def test_exchange_cancelled_as_its_reply_comes_leaves_the_connection_usable() -> None:
    async def test() -> None:
        wire = Wire()
        cancelled = wire.begin()
        await wire.feed(HEAD + b"Content-Length: 1\r\n\r\na")
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert wire.connection.is_reusable
        assert not wire.transport.is_aborted

    run(test)


def test_stream_that_is_dropped_unread_is_given_up() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await pending
        del pending
        await asyncio.sleep(0)
        assert wire.transport.is_aborted
        assert wire.ended == 1

    run(test)


def test_connection_that_was_given_up_before_it_was_made_is_closed_once_it_is() -> None:
    async def test() -> None:
        connection = Connection(WORKER, asyncio.get_running_loop(), Deadlines(request_s=60.0))
        connection.abort()
        transport = RecordingTransport()
        connection.connection_made(transport)
        assert transport.is_aborted
        assert not connection.is_reusable

    run(test)


@pytest.mark.parametrize("out_of_turn", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"x"])
def test_bytes_out_of_turn_close_the_connection(out_of_turn: bytes) -> None:
    async def test() -> None:
        wire = Wire()
        wire.connection.data_received(out_of_turn)
        assert wire.transport.is_aborted
        assert not wire.connection.is_reusable

    run(test)


def test_second_reply_to_one_request_is_not_taken_for_the_next_ones() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
        await wire.feed(whole + b"a" + whole + b"b")
        assert (await pending).body == b"a"
        assert wire.transport.is_aborted
        assert not wire.connection.is_reusable

    run(test)


@pytest.mark.parametrize(
    "junk",
    [
        b"SSH-2.0-OpenSSH\r\n",
        HEAD + b"Content-Length: x\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"a: b\r\n" * (MAX_HEAD_FIELDS + 1) + b"\r\n",
    ],
)
def test_what_is_not_http_is_an_upstream_error(junk: bytes) -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(junk)
        with pytest.raises(UpstreamError, match="not HTTP"):
            await pending
        assert wire.transport.is_aborted

    run(test)


def test_as_many_fields_as_are_allowed_are_passed_on() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(HEAD + b"Content-Length: 0\r\n" + b"a: b\r\n" * (MAX_HEAD_FIELDS - 1) + b"\r\n")
        assert len((await pending).headers) == MAX_HEAD_FIELDS

    run(test)


def test_deadline_ends_the_exchange() -> None:
    async def test() -> None:
        wire = Wire(timeout_s=0.01)
        with pytest.raises(UpstreamTimeout, match=r"0\.01 s"):
            await wire.begin()
        assert wire.transport.is_aborted

    run(test)


def test_connection_close_is_honoured() -> None:
    async def test() -> None:
        wire = Wire()
        pending = wire.begin()
        await wire.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await pending
        assert wire.transport.is_closed
        assert not wire.connection.is_reusable

    run(test)


def test_each_deadline_says_which_one_passed() -> None:
    async def test() -> None:
        first = Wire(first_byte_s=0.01)
        with pytest.raises(FirstByteTimeout, match=r"did not begin its reply within 0\.01 s"):
            await first.begin()
        whole = Wire(0.01)
        with pytest.raises(UpstreamTimeout, match=r"did not finish its reply within 0\.01 s"):
            await whole.begin()
        between = Wire(between_bytes_s=0.01)
        pending = between.begin()
        await between.feed(HEAD + b"Content-Length: 5\r\n\r\nab")
        with pytest.raises(BetweenBytesTimeout, match=r"did not go on with its reply within 0\.01 s"):
            await pending
        assert all(wire.transport.is_aborted and wire.ended == 1 for wire in (first, whole, between))

    run(test)


def test_reply_that_has_begun_is_past_the_deadline_of_its_first_byte() -> None:
    async def test() -> None:
        wire = Wire(first_byte_s=0.01, between_bytes_s=60.0)
        pending = wire.begin()
        await wire.feed(b"H")
        await asyncio.sleep(0.05)
        await wire.feed(b"TTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab")
        assert await read(await pending) == b"ab"

    run(test)


def test_reader_who_is_slow_does_not_let_the_worker_run_into_its_deadline() -> None:
    async def test() -> None:
        wire = Wire(between_bytes_s=0.01)
        pending = wire.begin()
        size = HIGH_WATER_BYTES + 2
        await wire.feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + b"a" * (size - 1))
        reply = await pending
        assert wire.transport.reads_paused
        await asyncio.sleep(0.05)
        stream = stream_of(reply)
        assert len(await anext(aiter(stream))) == size - 1
        with pytest.raises(BetweenBytesTimeout):
            await anext(aiter(stream))

    run(test)


def test_what_earlier_attempts_took_is_missing_from_the_time_for_the_whole() -> None:
    async def test() -> None:
        wire = Wire(60.0)
        with pytest.raises(UpstreamTimeout, match="within 60 s"):
            await wire.begin(spent_s=59.99)

    run(test)


def test_deadlines_of_an_exchange_that_ended_do_not_reach_the_next() -> None:
    async def test() -> None:
        wire = Wire(60.0, first_byte_s=60.0, between_bytes_s=0.02)
        for _ in range(2):
            pending = wire.begin(spent_s=59.9)
            await wire.feed(HEAD + b"Content-Length: 1\r\n\r\na")
            assert await read(await pending) == b"a"
        await asyncio.sleep(0.2)
        assert wire.connection.is_reusable

    run(test)
