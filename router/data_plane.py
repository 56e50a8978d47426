"""Takes calls from ASGI, runs them through the handlers, and writes the replies.

No routing, no request object and no validation of bodies: that is what makes it fast. What a call may do is
decided by the middleware and, in the end, by the worker.
"""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from ..calls import Call, Handler, Reply
from ..errors import HttpError, PayloadTooLarge
from .delays import DelayQueue
from .headers import end_to_end_request

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WATCH_AFTER_S: Final = 0.02
"""How long a call runs before we watch for its client to hang up: shorter calls are spared the task."""

_log = logging.getLogger("espalier.router")


class DataPlane:
    """Serves every path that is not the router's own."""

    def __init__(self, handler: Handler, *, max_body_bytes: int) -> None:
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._unwatched: DelayQueue[_HangUpWatch] = DelayQueue(WATCH_AFTER_S, _HangUpWatch.start)
        self.in_flight = 0
        self.hung_up_total = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        self.in_flight += 1
        try:
            try:
                body = await self._read_body(scope, receive)
            except HttpError as error:
                await _write(send, Reply.of_error(error), "POST")
                return
            if body is not None:
                await self._serve(self._call(scope, body), receive, send)
        finally:
            self.in_flight -= 1

    def bounded(self, receive: Receive) -> Receive:
        """Return `receive` for an application that reads the body itself, within the same limit.

        Raises, when it is called: PayloadTooLarge
        """
        size_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal size_bytes
            message = await receive()
            size_bytes += len(message.get("body", b""))
            if size_bytes > self._max_body_bytes:
                raise self._too_large()
            return message

        return receive_bounded

    async def _serve(self, call: Call, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        watch = _HangUpWatch(receive, loop)
        self._unwatched.add(watch, loop)
        try:
            try:
                reply = await self._handler(call)
            except HttpError as error:
                reply = Reply.of_error(error)
            except Exception:  # noqa: BLE001  a plug-in's bug ends its call, not the process
                _log.exception("event=call_failed path=%s request_id=%s", call.path, call.request_id)
                reply = Reply.of_error(HttpError("The router failed to serve this call; its log says why"))
            await _write(send, reply, call.method)
        except asyncio.CancelledError:
            if not watch.has_hung_up:
                raise
            self.hung_up_total += 1
            _log.info("event=client_hung_up path=%s request_id=%s", call.path, call.request_id)
        except HttpError as error:
            _log.warning(
                "event=reply_cut_short path=%s request_id=%s reason=%r",
                call.path,
                call.request_id,
                error.message,
            )
        finally:
            self._unwatched.discard(watch)
            watch.stop()

    def _call(self, scope: Scope, body: bytes) -> Call:
        query: bytes = scope["query_string"]
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        headers = end_to_end_request(scope["headers"])
        request_id = next((value for name, value in headers if name == b"x-request-id"), None)
        return Call(
            method=scope["method"],
            path=scope["path"],
            target=path + b"?" + query if query else path,
            headers=headers,
            body=body,
            request_id=request_id.decode("latin-1")
            if request_id
            else f"{self._prefix}-{next(self._numbers):x}",
        )

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body, or None where the client hung up before its end."""
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._max_body_bytes:
                raise self._too_large()
        chunks: list[bytes] = []
        size_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            if chunk:
                chunks.append(chunk)
                size_bytes += len(chunk)
                if size_bytes > self._max_body_bytes:
                    raise self._too_large()
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The request body is over {self._max_body_bytes} bytes; --max-payload-size raises the limit"
        )


class _HangUpWatch:
    """Cancels the task that made it when the client hangs up."""

    __slots__ = ("_loop", "_receive", "_served", "_task", "has_hung_up")

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        self._receive = receive
        self._loop = loop
        self._served = asyncio.current_task(loop)
        self._task: asyncio.Task[None] | None = None
        self.has_hung_up = False

    def start(self) -> None:
        self._task = self._loop.create_task(self._watch())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._served = None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._served is not None:
            self.has_hung_up = True
            self._served.cancel()


async def _write(send: Send, reply: Reply, method: str) -> None:
    body = reply.body
    if isinstance(body, bytes):
        headers = reply.headers
        if method != "HEAD" and reply.status not in (204, 304):
            headers = [field for field in headers if field[0] != b"content-length"]
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    try:
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        async for chunk in body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await body.aclose()
