"""Requests and replies over plain ASGI, and how to break a connection off."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, cast
from urllib.parse import parse_qs, unquote

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MAX_BODY_BYTES = 256 * 1024 * 1024
"""A request body that is longer is refused: a million token ids are 7 MB."""

JSON_TYPE = b"application/json"
SSE_TYPE = b"text/event-stream; charset=utf-8"

encode_json = msgspec.json.Encoder().encode


class BodyTooLarge(Exception):
    """The request's body is over the limit."""


class Request:
    """One HTTP request."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path = unquote(scope["path"])
        self._scope = scope
        self._receive = receive

    @property
    def query(self) -> dict[str, str]:
        """The query string; the last value of a name counts."""
        return {name: values[-1] for name, values in parse_qs(self._scope["query_string"].decode()).items()}

    def header(self, name: bytes) -> bytes | None:
        """Return the first header field called `name` (lower-case), or None."""
        return next((value for key, value in self._scope["headers"] if key == name), None)

    async def body(self) -> bytes:
        """Return the whole body.

        Raises: BodyTooLarge.
        """
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return b"".join(chunks)
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise BodyTooLarge
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def left(self) -> None:
        """Wait until the client has hung up. The body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Reply(msgspec.Struct, kw_only=True):
    """An answer: whole, or as it comes."""

    status: int = 200
    body: bytes = b""
    content_type: bytes | None = None
    headers: Headers = []
    stream: AsyncGenerator[bytes, None] | None = None

    async def send(self, send: Send) -> None:
        """Send it."""
        headers = list(self.headers)
        if self.content_type is not None:
            headers.append((b"content-type", self.content_type))
        if self.stream is None:
            headers.append((b"content-length", str(len(self.body)).encode()))
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            await send({"type": "http.response.body", "body": self.body})
            return
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        try:
            async for chunk in self.stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            await self.stream.aclose()


def json_reply(value: object, status: int = 200, headers: Headers | None = None) -> Reply:
    """Return a JSON reply."""
    return Reply(status=status, body=encode_json(value), content_type=JSON_TYPE, headers=headers or [])


def text_reply(text: str, status: int = 200) -> Reply:
    """Return a reply of bare text, without a content type, as SGLang sends it."""
    return Reply(status=status, body=text.encode())


def sse_event(value: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + encode_json(value) + b"\n\n"


SSE_DONE = b"data: [DONE]\n\n"


def transport_of(send: Send) -> asyncio.WriteTransport:
    """Return the connection behind a request.

    ASGI has no message for breaking a connection off, so the server's own transport is used: uvicorn's `send`
    belongs to an object that has it. Raises: RuntimeError under a server that hides it.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is None:
        raise RuntimeError("this server does not let a simulated worker break a connection off: use uvicorn")
    return cast("asyncio.WriteTransport", transport)


async def sever(receive: Receive, send: Send, *, abruptly: bool) -> None:
    """Break the connection off, whatever the client is reading.

    `abruptly` resets it; otherwise what was sent still arrives.
    """
    transport = transport_of(send)
    if abruptly:
        transport.abort()
    else:
        transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass
