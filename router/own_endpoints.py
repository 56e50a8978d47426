"""The router's own paths: under the same body limit, the same request ids and in the same books as calls."""

import asyncio
from time import perf_counter

from ..calls import Reply
from ..errors import HttpError, PayloadTooLarge
from .asgi_exchange import Application, Message, Receive, Scope, Send, write_reply
from .auth import ABORT_PATH, Gate
from .data_plane import SHUTTING_DOWN, DataPlane
from .ledger import CLIENT_GONE, CallRecord, OnEnd
from .request_id import tell_request_id


class OwnEndpoints:
    """Serves requests with `app`; `on_end` gets the record of each one that has ended."""

    def __init__(self, app: Application, data_plane: DataPlane, *, on_end: OnEnd) -> None:
        self._app = app
        self._data_plane = data_plane
        self._on_end = on_end
        self.gate: Gate | None = None
        self.is_stopping = False
        """Whether the router ends: then it says that it is not ready, so that balancers look elsewhere."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        if self.is_stopping and scope["path"] == "/readiness":
            await self.refuse(scope, send, SHUTTING_DOWN)
            return
        exchange = self._data_plane.exchange(scope, receive, send)
        record = exchange.record
        tell_request_id(scope["headers"], record.request_id)
        try:
            body = await exchange.read_body(self._data_plane.max_body_bytes)
            if body is None:
                return
            refusal = None
            if self.gate is not None and scope["path"] == ABORT_PATH:
                refusal = self.gate.refusal_of_abort(scope["headers"], body)
            if refusal is not None:
                await write_reply(send, Reply.of_error(refusal), record)
            else:
                await self._app(scope, _replayed(body, receive), _noted(send, record))
        except PayloadTooLarge as error:
            await exchange.write(Reply.of_error(error))
        except asyncio.CancelledError:
            if record.status == CLIENT_GONE:
                await write_reply(send, Reply.of_error(SHUTTING_DOWN), record)
        finally:
            self._on_end(record)

    async def refuse(self, scope: Scope, send: Send, error: HttpError) -> None:
        """Answer a request with `error`, unread."""
        record = self._data_plane.open_record(
            scope["method"], scope["path"], scope["headers"], scope.get("client")
        )
        try:
            await write_reply(send, Reply.of_error(error), record)
        finally:
            self._on_end(record)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return `receive` for an application, with the whole body first."""
    is_first = True

    async def replay() -> Message:
        nonlocal is_first
        if is_first:
            is_first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _noted(send: Send, record: CallRecord) -> Send:
    """Return `send` for an application; what goes out bears the request's id, and is noted."""

    async def note(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status, record.head_s = message["status"], perf_counter()
            tell_request_id(message["headers"], record.request_id)
        else:
            record.reply_bytes += len(message.get("body", b""))
        await send(message)

    return note
