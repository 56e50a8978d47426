"""One keep-alive HTTP/1.1 connection to a worker, one exchange at a time.

*Invariant*: an exchange ends in exactly one way: with a complete reply, with an error, or by being given up.
Only after a complete reply, with nothing left unread, may the connection be used again.

*Theory of operation*: bytes from the transport go through httptools' parser, whose callbacks fill the current
exchange. A reply whose length is known and small is handed over whole: one future, no queue, which is what
makes small calls cheap. Any other is handed over at its head as a stream; between the socket and its reader
stand at most `HIGH_WATER_BYTES`, then reading pauses until the reader has caught up. Bytes that arrive
without an exchange mean that the worker speaks out of turn: the connection is closed.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

from ..calls import Reply
from ..errors import UpstreamError, UpstreamTimeout
from .course import promise, write
from .delays import DelayQueue
from .failures import BetweenBytesTimeout, ConnectionDropped, FirstByteTimeout
from .headers import BODILESS_STATUS
from .origin import Origin
from .pending_reply import AwaitedReply, PendingReply

WHOLE_BODY_MAX_BYTES: Final = 1 << 20
"""Replies up to this length are handed over whole; longer ones stream, so that memory stays bounded."""

HIGH_WATER_BYTES: Final = 256 << 10
"""Unread bytes of a stream at which reading from the worker pauses."""

COPIED_BODY_MAX_BYTES: Final = 64 << 10
"""Request bodies up to this length are joined with their head: one small copy for one write."""

MAX_HEAD_FIELDS: Final = 1000
"""Header fields in one reply; a worker that sends more is broken."""

MAX_STATUS: Final = 599
"""HTTP knows no higher one."""


class Deadlines:
    """How long the connections of one pool wait: for the whole reply, its first byte, the next one."""

    __slots__ = ("between_bytes", "first_byte", "whole")

    def __init__(
        self, *, request_s: float, first_byte_s: float | None = None, between_bytes_s: float | None = None
    ) -> None:
        """Take seconds; None leaves a part to the deadline of the whole."""
        self.whole: DelayQueue[Connection] = DelayQueue(request_s, Connection.time_out)
        self.first_byte = _optional(first_byte_s, Connection.time_out_first_byte)
        self.between_bytes = _optional(between_bytes_s, Connection.time_out_between_bytes)


def _optional(
    delay_s: float | None, expire: "Callable[[Connection], None]"
) -> "DelayQueue[Connection] | None":
    return None if delay_s is None else DelayQueue(delay_s, expire)


class Connection(asyncio.Protocol):
    """A connection made by `loop.create_connection`; `origin` is named in errors."""

    def __init__(self, origin: Origin, loop: asyncio.AbstractEventLoop, deadlines: Deadlines) -> None:
        self.origin = origin
        self.loop = loop
        self._deadlines = deadlines
        self._own_deadline: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: PendingReply | None = None
        self._on_end: Callable[[Connection], None] | None = None
        self._reusable = True

    @property
    def is_reusable(self) -> bool:
        """Whether another exchange may begin: still open, nothing pending, keep-alive agreed."""
        return self._reusable and self._exchange is None

    async def exchange(
        self,
        head: bytes,
        body: bytes,
        *,
        head_only: bool,
        on_end: Callable[["Connection"], None],
        spent_s: float = 0.0,
    ) -> Reply:
        """Send a request, head and body; return its reply, whole or as a stream.

        `head_only` is for HEAD, whose reply has a length but no body. `on_end` is called once, when the
        connection is done with this exchange. The deadline of the whole reaches to the last byte; `spent_s`
        of it have gone by already.

        Raises: ConnectionDropped, UpstreamTimeout, UpstreamError (not HTTP). Giving up by cancellation
        closes the connection, which is how a worker learns of it.
        """
        transport = self._transport
        if transport is None or not self.is_reusable:
            raise ConnectionDropped(f"The connection to {self.origin} is closed", reply_begun=False)
        reply: AwaitedReply = promise(self.loop)
        exchange = PendingReply(self, reply, head_only=head_only)
        self._on_end = on_end
        self._exchange = exchange
        self._watch(spent_s)
        if len(body) > COPIED_BODY_MAX_BYTES:
            transport.writelines((head, body))
        else:
            write(transport, head + body)
        try:
            return await reply
        except asyncio.CancelledError:
            # The reply may have come in the same turn; then somebody else may have the connection already.
            if self._exchange is exchange:
                self.abort()
            raise

    def time_out(self) -> None:
        """End the exchange, whose deadline has passed."""
        self._end_late("did not finish its reply", self._deadlines.whole.delay_s, UpstreamTimeout)

    def time_out_first_byte(self) -> None:
        """End the exchange: the reply has not begun."""
        assert self._deadlines.first_byte is not None
        self._end_late("did not begin its reply", self._deadlines.first_byte.delay_s, FirstByteTimeout)

    def time_out_between_bytes(self) -> None:
        """End the exchange: the reply does not go on."""
        assert self._deadlines.between_bytes is not None
        self._end_late(
            "did not go on with its reply", self._deadlines.between_bytes.delay_s, BetweenBytesTimeout
        )

    def abort(self) -> None:
        """Close at once; a pending exchange fails."""
        self._reusable = False
        if self._transport is not None:
            self._transport.abort()
        self._fail(f"The call to {self.origin} was given up")

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, unless nobody waits for it any more."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._reusable:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what came; anything that is not the reply we wait for closes the connection."""
        if self._exchange is None:
            self.abort()
            return
        if not self._exchange.begun:
            self._exchange.begun = True
            if self._deadlines.first_byte is not None:
                self._deadlines.first_byte.discard(self)
        if self._deadlines.between_bytes is not None:
            self._deadlines.between_bytes.discard(self)
            self._deadlines.between_bytes.add(self, self.loop)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._reusable = False
            self._fail(f"The worker {self.origin} sent what is not HTTP: {error}", UpstreamError)
            self.abort()

    def eof_received(self) -> bool:
        """Let asyncio close our side as well."""
        self._reusable = False
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange: well, if the reply was delimited by the end of the connection."""
        self._reusable = False
        self._transport = None
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.ends_with_connection and exc is None:
            self._complete(exchange)
        else:
            told = f": {exc}" if exc else ""
            self._fail(f"The worker {self.origin} closed the connection before its reply was complete{told}")

    # What httptools calls.

    def on_message_begin(self) -> None:
        """Begin a new reply; a second one without a second request is out of turn."""
        if self._exchange is None:
            self.abort()
        else:
            self._exchange.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a field."""
        if self._exchange is not None:
            headers = self._exchange.headers
            headers.append((name.lower(), value))
            if len(headers) > MAX_HEAD_FIELDS:
                raise httptools.HttpParserCallbackError(f"more than {MAX_HEAD_FIELDS} header fields")

    def on_headers_complete(self) -> None:
        """Decide whether the body is handed over whole or as a stream."""
        exchange = self._exchange
        status = self._parser.get_status_code()
        if exchange is None or status < 200:
            return
        if status > MAX_STATUS:
            raise httptools.HttpParserCallbackError(f"the status {status}")
        exchange.status = status
        exchange.is_bodiless = exchange.head_only or status in BODILESS_STATUS
        length, is_chunked = None, False
        for name, value in exchange.headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                is_chunked = b"chunked" in value.lower()
        exchange.ends_with_connection = length is None and not is_chunked and not exchange.is_bodiless
        if exchange.is_bodiless:
            if exchange.head_only:
                self._reusable = False
                self._complete(exchange)
        elif length is None or length > WHOLE_BODY_MAX_BYTES:
            exchange.begin_stream()

    def on_body(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        exchange = self._exchange
        if exchange is None:
            return
        exchange.chunks.append(chunk)
        if exchange.is_streamed:
            exchange.unread_bytes += len(chunk)
            exchange.wake()
            if exchange.unread_bytes > HIGH_WATER_BYTES and self._transport is not None:
                exchange.is_paused = True
                self._transport.pause_reading()
                if self._deadlines.between_bytes is not None:  # it is the client who is slow
                    self._deadlines.between_bytes.discard(self)

    def on_message_complete(self) -> None:
        """End the exchange, unless what came was only an interim reply (1xx)."""
        exchange = self._exchange
        if exchange is not None and exchange.status:
            if not self._parser.should_keep_alive():
                self._reusable = False
            self._complete(exchange)

    # Ends of an exchange.

    def resume_reading(self) -> None:
        """Go on reading after a pause."""
        if self._transport is not None:
            self._transport.resume_reading()
            if self._deadlines.between_bytes is not None and self._exchange is not None:
                self._deadlines.between_bytes.add(self, self.loop)

    def exchange_ended(self) -> None:
        """Tell whoever asked for the exchange that the connection is done with it."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)

    def _watch(self, spent_s: float) -> None:
        deadlines = self._deadlines
        if spent_s:
            left_s = max(0.0, deadlines.whole.delay_s - spent_s)
            self._own_deadline = self.loop.call_later(left_s, self.time_out)
        else:
            deadlines.whole.add(self, self.loop)
        if deadlines.first_byte is not None:
            deadlines.first_byte.add(self, self.loop)

    def _unwatch(self) -> None:
        deadlines = self._deadlines
        deadlines.whole.discard(self)
        if self._own_deadline is not None:
            self._own_deadline.cancel()
            self._own_deadline = None
        if deadlines.first_byte is not None:
            deadlines.first_byte.discard(self)
        if deadlines.between_bytes is not None:
            deadlines.between_bytes.discard(self)

    def _end_late(self, what: str, delay_s: float, kind: type[UpstreamTimeout]) -> None:
        self._reusable = False
        self._fail(f"The worker {self.origin} {what} within {delay_s:g} s", kind)
        self.abort()

    def _complete(self, exchange: PendingReply) -> None:
        self._exchange = None
        self._unwatch()
        if not self._reusable and self._transport is not None:
            self._transport.close()
        exchange.complete()

    def _fail(self, message: str, kind: type[UpstreamError] | None = None) -> None:
        exchange, self._exchange = self._exchange, None
        self._unwatch()
        if exchange is not None:
            error = kind(message) if kind else ConnectionDropped(message, reply_begun=exchange.begun)
            exchange.fail(error)
