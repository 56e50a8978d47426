"""An exchange over ASGI."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any, Final

from ..calls import Headers, Reply
from .delays import DelayQueue
from .exchange import declared_size, told_headers, too_large
from .ledger import CallRecord

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

WATCH_AFTER_S: Final = 0.02
"""How long a call runs before we watch for its client to hang up: shorter calls are spared the task."""


class AsgiExchange:
    """See `Exchange`."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        record: CallRecord,
        unwatched: "DelayQueue[AsgiExchange]",
    ) -> None:
        """Take an ASGI connection; `unwatched` calls `start_watching` once a call has run for a while."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self.record = record
        self._unwatched = unwatched
        self._serving: asyncio.Task[Any] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.has_hung_up = False

    @property
    def path(self) -> str:
        """The path, decoded."""
        path: str = self._scope["path"]
        return path

    @property
    def target(self) -> bytes:
        """The path as it came, with the query."""
        query: bytes = self._scope["query_string"]
        path: bytes = self._scope.get("raw_path") or self._scope["path"].encode()
        return path + b"?" + query if query else path

    @property
    def headers(self) -> Headers:
        """The request's header fields, hop-by-hop ones included."""
        headers: Headers = self._scope["headers"]
        return headers

    async def read_body(self, max_bytes: int) -> bytes | None:
        """Return the whole body; None where the client hung up before.

        Raises: PayloadTooLarge, as soon as that is known.
        """
        if declared_size(self.headers) > max_bytes:
            raise too_large(max_bytes)
        chunks: list[bytes] = []
        size_bytes, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size_bytes += len(chunks[-1])
            if size_bytes > max_bytes:
                raise too_large(max_bytes)
            more = message.get("more_body", False)
        self.record.request_bytes = size_bytes
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def watch(self) -> None:
        """From now on, cancel the current task when the client hangs up."""
        self._serving = asyncio.current_task()
        self._unwatched.add(self, asyncio.get_running_loop())

    def start_watching(self) -> None:
        """Wait for the client to hang up."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def unwatch(self) -> None:
        """Leave the task alone again."""
        self._unwatched.discard(self)
        self._serving = None
        if self._watching is not None:
            self._watching.cancel()

    async def write(self, reply: Reply) -> None:
        """Send a reply, no faster than the client takes it.

        Raises: UpstreamError where the worker breaks off its body.
        """
        await write_reply(self._send, reply, self.record)

    def break_off(self) -> None:
        """Do nothing: the server sees that the reply was not ended, and closes."""

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._serving is not None:
            self.has_hung_up = True
            self._serving.cancel()


async def write_reply(send: Send, reply: Reply, record: CallRecord) -> None:
    """Send `reply`, with the request's id; note in `record` what goes out.

    Raises: UpstreamError where the worker breaks off its body.
    """
    headers = told_headers(reply, record)
    record.status = reply.status
    if isinstance(reply.body, bytes):
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})
        record.reply_bytes = 0 if record.method == "HEAD" else len(reply.body)
        return
    record.head_s = perf_counter()
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    async for chunk in reply.body:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        record.reply_bytes += len(chunk)
    await send({"type": "http.response.body", "body": b""})
