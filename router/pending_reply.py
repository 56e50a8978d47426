"""A worker's reply while it comes: handed over whole, or at its head as a stream."""

import asyncio
from collections import deque
from typing import Protocol, TypeAlias

from ..calls import Headers, Reply
from ..errors import UpstreamError
from .course import Promise
from .headers import end_to_end_reply

AwaitedReply: TypeAlias = asyncio.Future[Reply] | Promise[Reply]
"""Where somebody waits for a reply: in a task, or on a course."""


class ReplySource(Protocol):
    """What a reply needs of its connection."""

    def abort(self) -> None:
        """Close: the rest is not wanted."""

    def resume_reading(self) -> None:
        """Go on reading after a pause."""

    def exchange_ended(self) -> None:
        """Take note that the exchange is over."""


class PendingReply:
    """The reply to one request that was sent, as far as it has come."""

    __slots__ = (
        "_reply",
        "_source",
        "begun",
        "chunks",
        "ends_with_connection",
        "error",
        "head_only",
        "headers",
        "is_bodiless",
        "is_complete",
        "is_paused",
        "is_streamed",
        "status",
        "unread_bytes",
        "waiter",
    )

    def __init__(self, source: ReplySource, reply: AwaitedReply, *, head_only: bool) -> None:
        """Set `reply` once it is whole, or once its head is there; bytes come from `source`."""
        self._source = source
        self._reply: AwaitedReply | None = reply
        self.head_only = head_only
        self.begun = False
        self.status = 0
        self.headers: Headers = []
        self.chunks: deque[bytes] = deque()
        self.is_bodiless = False
        self.ends_with_connection = False
        self.is_complete = False
        self.is_paused = False
        self.error: UpstreamError | None = None
        self.is_streamed = False
        self.unread_bytes = 0
        self.waiter: asyncio.Future[None] | None = None

    def begin_stream(self) -> None:
        """Hand the reply over at its head; chunks follow."""
        self.is_streamed = True
        reply = self._awaited_reply()
        if reply is not None:
            headers = end_to_end_reply(self.headers)
            reply.set_result(Reply(status=self.status, headers=headers, body=ReplyStream(self)))

    def complete(self) -> None:
        """End well: hand a whole reply over, or end the stream."""
        self.is_complete = True
        self._resume()
        reply = self._awaited_reply()
        if reply is not None:
            chunks = self.chunks
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            headers = end_to_end_reply(self.headers)
            reply.set_result(Reply(status=self.status, headers=headers, body=body))
        self._end()

    def fail(self, error: UpstreamError) -> None:
        """End badly: whoever waits for the reply or its next chunk gets `error`."""
        self.error = error
        reply = self._awaited_reply()
        if reply is not None:
            reply.set_exception(error)
        self._end()

    def wake(self) -> None:
        """Tell the reader that there is something new."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def next_chunk(self) -> bytes | None:
        """Return what has come since the last chunk, None at the end.

        Raises: UpstreamError where the reply broke off.
        """
        while not self.chunks:
            if self.error is not None:
                raise self.error
            if self.is_complete:
                return None
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        chunks = self.chunks
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.unread_bytes = 0
        self._resume()
        return chunk

    def give_up(self) -> None:
        """Want no more of it. Harmless after the end."""
        self.chunks.clear()
        if not self.is_complete and self.error is None:
            self._source.abort()

    def _awaited_reply(self) -> AwaitedReply | None:
        """Return where somebody waits for the reply, once.

        It is not kept: it holds the reply, which holds the stream, which must be free to be dropped.
        """
        reply, self._reply = self._reply, None
        return None if reply is None or reply.done() else reply

    def _resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            self._source.resume_reading()

    def _end(self) -> None:
        self.wake()
        self._source.exchange_ended()


class ReplyStream:
    """A reply's body as it arrives: a `ByteStream`. One that is dropped unread is given up."""

    __slots__ = ("_pending",)

    def __init__(self, reply: PendingReply) -> None:
        """Read on from the head of `reply`."""
        self._pending = reply

    def __aiter__(self) -> "ReplyStream":
        """Iterate over the chunks, once."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next chunk as soon as it is there.

        Raises: UpstreamError where the worker breaks off.
        """
        chunk = await self._pending.next_chunk()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Give up what was not read."""
        self._pending.give_up()

    def __del__(self) -> None:
        """Give up what nobody will read."""
        self._pending.give_up()
