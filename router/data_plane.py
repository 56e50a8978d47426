"""Takes calls from ASGI, runs them through the handlers, and writes the replies.

No routing, no request object and no validation of bodies: that is what makes it fast. What a call may do is
decided by the middleware and, in the end, by the worker.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any, Final

from ..calls import Call, Handler, Reply
from ..errors import HttpError, NoWorkerAvailable, PayloadTooLarge, QueueTimeout, TooManyCalls
from .admission import Admission
from .delays import DelayQueue
from .headers import end_to_end_request
from .ledger import CallRecord, OnEnd
from .request_id import REQUEST_ID_HEADER, RequestIds, tell_request_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

WATCH_AFTER_S: Final = 0.02
"""How long a call runs before we watch for its client to hang up: shorter calls are spared the task."""

_ECHOED: Final = frozenset({REQUEST_ID_HEADER})
_REWRITTEN: Final = _ECHOED | {b"content-length"}
"""What a reply's head tells in our words."""

SHUTTING_DOWN: Final = NoWorkerAvailable("The router is shutting down", retry_after_s=5)

_log = logging.getLogger("espalier.router")


class DataPlane:
    """Serves every path that is not the router's own."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_body_bytes: int,
        request_ids: RequestIds,
        on_end: OnEnd,
        admission: Admission | None = None,
    ) -> None:
        """Answer calls with `handler`; `on_end` gets the record of each one that has ended.

        Without `admission`, however many calls come are served at once.
        """
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._request_ids = request_ids
        self._on_end = on_end
        self._admission = admission
        self._unwatched: DelayQueue[_HangUpWatch] = DelayQueue(WATCH_AFTER_S, _HangUpWatch.start)
        self.in_flight = 0
        self.hung_up_total = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        record = self.open_record(scope)
        self.in_flight += 1
        try:
            body = await self.read_body(scope, receive, send, record)
            if body is not None:
                await self._serve(self._call(scope, body, record), receive, send, record)
        except asyncio.CancelledError:  # while its body was still coming
            await write_reply(send, Reply.of_error(SHUTTING_DOWN), record)
        finally:
            self.in_flight -= 1
            self._on_end(record)

    def open_record(self, scope: Scope) -> CallRecord:
        """Return the record of a request that has just come."""
        request_id = self._request_ids.of(scope["headers"])
        return CallRecord(scope["method"], scope["path"], request_id, scope.get("client"), perf_counter())

    async def read_body(self, scope: Scope, receive: Receive, send: Send, record: CallRecord) -> bytes | None:
        """Return the whole body; None where the client hung up, or was told that it is too large."""
        limit = self._max_body_bytes
        declared = 0
        for name, value in scope["headers"]:
            if name == b"content-length":
                declared = int(value)
        body = b""
        if declared <= limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body = message.get("body", b"")
            if message.get("more_body", False):
                whole = await _read_rest(receive, body, limit)
                if whole is None:
                    return None
                body = whole
        if declared > limit or len(body) > limit:
            error = PayloadTooLarge(
                f"The request body is over {limit} bytes; --max-payload-size raises the limit"
            )
            await write_reply(send, Reply.of_error(error), record)
            return None
        record.request_bytes = len(body)
        return body

    async def _serve(self, call: Call, receive: Receive, send: Send, record: CallRecord) -> None:
        loop = asyncio.get_running_loop()
        watch = _HangUpWatch(receive, loop)
        self._unwatched.add(watch, loop)
        reply: Reply | None = None
        is_inside = False
        try:
            if self._admission is not None:
                await self._admission.enter()
                is_inside = True
            reply = await self._answer(call)
            await write_reply(send, reply, record)
        except (QueueTimeout, TooManyCalls) as error:
            await write_reply(send, Reply.of_error(error), record)
        except HttpError as error:
            _log.warning(
                "event=reply_cut_short path=%s request_id=%s reason=%r",
                call.path,
                call.request_id,
                error.message,
            )
        except asyncio.CancelledError:
            if watch.has_hung_up:
                self.hung_up_total += 1
                _log.info("event=client_hung_up path=%s request_id=%s", call.path, call.request_id)
            elif reply is None:
                await write_reply(send, Reply.of_error(SHUTTING_DOWN), record)
        finally:
            self._unwatched.discard(watch)
            watch.stop()
            if is_inside and self._admission is not None:
                self._admission.leave()
            if reply is not None and not isinstance(reply.body, bytes):
                await reply.body.aclose()

    async def _answer(self, call: Call) -> Reply:
        try:
            return await self._handler(call)
        except HttpError as error:
            return Reply.of_error(error)
        except Exception:  # noqa: BLE001  a plug-in's bug ends its call, not the process
            _log.exception("event=call_failed path=%s request_id=%s", call.path, call.request_id)
            return Reply.of_error(HttpError("The router failed to serve this call; its log says why"))

    def _call(self, scope: Scope, body: bytes, record: CallRecord) -> Call:
        query: bytes = scope["query_string"]
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        headers = end_to_end_request(scope["headers"])
        tell_request_id(headers, record.request_id)
        return Call(
            method=scope["method"],
            path=scope["path"],
            target=path + b"?" + query if query else path,
            headers=headers,
            body=body,
            request_id=record.request_id.decode(),
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


async def _read_rest(receive: Receive, first: bytes, limit: int) -> bytes | None:
    """Return the body that begins with `first`, but no chunk after the one that goes over `limit` bytes.

    None where the client hangs up.
    """
    chunks, size_bytes, more = [first], len(first), True
    while more and size_bytes <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size_bytes += len(chunks[-1])
        more = message.get("more_body", False)
    return b"".join(chunks)


async def write_reply(send: Send, reply: Reply, record: CallRecord) -> None:
    """Send `reply`, with the request's id; note in `record` what goes out."""
    body, method = reply.body, record.method
    is_bodiless = reply.status in (204, 304)
    is_whole = isinstance(body, bytes)
    dropped = _REWRITTEN if is_bodiless or (is_whole and method != "HEAD") else _ECHOED
    headers = [field for field in reply.headers if field[0] not in dropped]
    headers.append((REQUEST_ID_HEADER, record.request_id))
    record.status = reply.status
    if isinstance(body, bytes):
        if not is_bodiless and method != "HEAD":
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        record.reply_bytes = 0 if method == "HEAD" else len(body)
        return
    record.head_s = perf_counter()
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    async for chunk in body:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        record.reply_bytes += len(chunk)
    await send({"type": "http.response.body", "body": b""})
