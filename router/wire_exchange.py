"""An exchange straight from uvicorn's parser to the client's socket.

ASGI costs a short call a third of its time: a scope, a message for each step, a coroutine to take each one,
and a task that waits for the client to hang up. Here a body that came with its head is there when the call
begins, a hang-up is one method, and a whole reply is one write.

To the connection, uvicorn's protocol, an exchange stands in the place of its own request cycle: it has what
uvicorn looks at there.
"""

import asyncio
from time import perf_counter
from typing import Final, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ..calls import Headers, Reply
from .course import Course, in_a_task, write
from .exchange import declared_size, told_headers, too_large
from .headers import BODILESS_STATUS
from .ledger import CallRecord

JOIN_MAX_BYTES: Final = 16 << 10
"""Up to this size, head and body are joined before they are written; a longer body is not copied."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientConnection(Protocol):
    """What an exchange needs of its client's connection."""

    flow: FlowControl
    transport: asyncio.Transport

    def on_response_complete(self) -> None:
        """Go on with the next request."""


class WireExchange:
    """See `Exchange`. The connection calls `receive`, `complete` and `hang_up` as bytes come, or end."""

    __slots__ = (
        "_body",
        "_connection",
        "_expects_continue",
        "_is_watched",
        "_knows_chunks",
        "_news",
        "disconnected",
        "has_hung_up",
        "headers",
        "keep_alive",
        "more_body",
        "path",
        "record",
        "response_complete",
        "target",
        "task",
    )

    def __init__(
        self,
        connection: ClientConnection,
        record: CallRecord,
        *,
        target: bytes,
        headers: Headers,
        keep_alive: bool,
        expects_continue: bool,
        knows_chunks: bool,
    ) -> None:
        """Take a request whose head has come; `expects_continue` is whether its client waits to be asked.

        To one that does not know chunks, of HTTP/1.0, the end of a stream is that of its connection.
        """
        self._connection = connection
        self.record = record
        self.path = record.path
        self.target = target
        self.headers = headers
        self._body: bytes | bytearray = b""
        """What has come of it; from the second piece on in one array, for pieces may be small and many."""
        self.more_body = True
        """Whether its body has not come to its end."""
        self._news: asyncio.Future[None] | None = None
        self._expects_continue = expects_continue
        self._is_watched = False
        self.task: asyncio.Task[None] | Course | None = None
        """Serves it. Set by whoever made it, for it is asked at every call."""
        self._knows_chunks = knows_chunks
        self.has_hung_up = False
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False

    @property
    def message_event(self) -> "WireExchange":
        """What uvicorn sets when the connection is lost."""
        return self

    def set(self) -> None:
        """End the call: its client has hung up."""
        if self.response_complete:
            return
        self.has_hung_up = True
        if self._is_watched and self.task is not None:
            self.task.cancel()
        self._tell_reader()

    def receive(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        if not self.response_complete:
            if not self._body:
                self._body = chunk
            elif isinstance(self._body, bytearray):
                self._body += chunk
            else:
                self._body = bytearray(self._body)
                self._body += chunk
            self._tell_reader()

    def complete(self) -> None:
        """Take note that the body has come to its end."""
        self.more_body = False
        self._tell_reader()

    async def read_body(self, max_bytes: int) -> bytes | None:
        """Return the whole body; None where the client hung up before.

        Raises: PayloadTooLarge, as soon as that is known.
        """
        if self.more_body:
            if declared_size(self.headers) > max_bytes:
                if self._expects_continue:  # a body may follow, or the next request: nobody could tell
                    self.keep_alive = False
                raise too_large(max_bytes)
            if self._expects_continue:
                self._connection.transport.write(CONTINUE)
        while self.more_body and len(self._body) <= max_bytes:
            if self.has_hung_up:
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        body, self._body = self._body, b""
        if len(body) > max_bytes:
            raise too_large(max_bytes)
        self.record.request_bytes = len(body)
        return bytes(body)

    def watch(self) -> None:
        """From now on, cancel the task when the client hangs up."""
        self._is_watched = True
        if self.has_hung_up and self.task is not None:
            self.task.cancel()

    def unwatch(self) -> None:
        """Leave the task alone again."""
        self._is_watched = False

    async def write(self, reply: Reply) -> None:
        """Send a reply, no faster than the client takes it.

        Raises: UpstreamError where the worker breaks off its body; ValueError where a field of the head has a
        line break in it.
        """
        flow = self._connection.flow
        if flow.write_paused:  # its client has not taken what it was told before
            await in_a_task()
            await flow.drain()
        if self.has_hung_up:
            return
        if isinstance(reply.body, bytes):
            self._write_whole(reply, reply.body)
        else:
            await self._write_stream(reply)
        self.response_complete = True
        if not self.keep_alive:
            self._connection.transport.close()
        self._connection.on_response_complete()

    def break_off(self) -> None:
        """Let the client see that what it got is not the whole reply."""
        self.response_complete = True
        self._connection.transport.close()

    def _write_whole(self, reply: Reply, body: bytes) -> None:
        record, transport = self.record, self._connection.transport
        head = reply_head(reply.status, told_headers(reply, record), keep_alive=self.keep_alive)
        record.status = reply.status
        if record.method == "HEAD" or reply.status in BODILESS_STATUS:
            transport.write(head)
            return
        record.reply_bytes = len(body)
        if len(body) <= JOIN_MAX_BYTES and self.keep_alive:
            write(transport, head + body)
        elif len(body) <= JOIN_MAX_BYTES:
            transport.write(head + body)  # closed in a moment
        else:
            transport.writelines((head, body))

    async def _write_stream(self, reply: Reply) -> None:
        assert not isinstance(reply.body, bytes)
        await in_a_task()
        record, flow, transport = self.record, self._connection.flow, self._connection.transport
        headers = told_headers(reply, record)
        is_bodiless = reply.status in BODILESS_STATUS or record.method == "HEAD"
        is_delimited = is_bodiless or any(name == b"content-length" for name, _ in headers)
        is_chunked = self._knows_chunks and not is_delimited
        if is_chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        head = reply_head(reply.status, headers, keep_alive=self.keep_alive)
        record.status, record.head_s = reply.status, perf_counter()
        transport.write(head)
        async for chunk in reply.body:
            if is_bodiless or not chunk:
                continue
            if is_chunked:
                transport.writelines((b"%x\r\n" % len(chunk), chunk, b"\r\n"))
            else:
                transport.write(chunk)
            record.reply_bytes += len(chunk)
            if flow.write_paused:
                await flow.drain()
        if is_chunked:
            transport.write(b"0\r\n\r\n")

    def _tell_reader(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def reply_head(status: int, headers: Headers, *, keep_alive: bool) -> bytes:
    """Return a reply's head.

    Raises: ValueError where a field has a line break in it: it would be read as another field.
    """
    lines = [STATUS_LINE[status]]
    lines.extend([b"%b: %b\r\n" % field for field in headers])
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
        raise ValueError("a header field of the reply has a line break in it")
    return head + b"\r\n"
