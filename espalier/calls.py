"""What passes through the router: a call, its reply, and the middleware between them.

A middleware is one object for the life of the process; it holds no state of a single call and never sees
the router. It is called with the call and with the next handler, which it may call once, several times
(retry) or not at all:

    class CountCalls(MiddlewareBase):
        calls = 0

        async def __call__(self, call: Call, forward: Handler) -> Reply:
            self.calls += 1
            return await forward(call)
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from .errors import BadRequest, HttpError, UpstreamError

if TYPE_CHECKING:
    from fastapi import APIRouter

Headers = list[tuple[bytes, bytes]]
"""Header fields in the order they came; names are lower-case; a name may stand more than once."""

JsonObject = dict[str, Any]
"""A decoded JSON object. Its values are whatever the client sent: check before use."""

_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder().encode


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request on its way to a worker. Immutable: a middleware that rewrites it makes a new one.

    `target` is the path as it came, percent-encoded, with the query string. `headers` hold end-to-end
    fields only: no Host, Content-Length or hop-by-hop fields, which the transport writes itself.
    """

    method: str
    path: str
    target: bytes
    headers: Headers
    body: bytes
    request_id: str
    _parsed: tuple[bytes, JsonObject] | None = None
    """The body that was parsed last, and what it holds."""

    def json(self) -> JsonObject:
        """Return the body as a JSON object, parsed once and shared by all middleware: do not change it.

        Raises: BadRequest where the body is not a JSON object.
        """
        parsed = self._parsed
        if parsed is None or parsed[0] is not self.body:
            try:
                decoded = _decode_json(self.body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise BadRequest(f"The request body is not valid JSON: {error}") from None
            if not isinstance(decoded, dict):
                raise BadRequest(f"The request body must be a JSON object, not {_json_type(decoded)}")
            parsed = (self.body, decoded)
            msgspec.structs.force_setattr(self, "_parsed", parsed)
        return parsed[1]

    def json_if_parsed(self) -> JsonObject | None:
        """Return what `json` would, where somebody has asked for it already; else None."""
        parsed = self._parsed
        return parsed[1] if parsed is not None and parsed[0] is self.body else None

    def with_json(self, value: JsonObject) -> Self:
        """Return the same call with `value` as its body."""
        body = _encode_json(value)
        return msgspec.structs.replace(self, body=body, _parsed=(body, value))

    def header(self, name: bytes) -> bytes | None:
        """Return the first header field called `name` (lower-case), or None."""
        return next((value for key, value in self.headers if key == name), None)


class ByteStream(Protocol):
    """A body as it arrives. Unlike an async generator, it can be closed before it was ever read."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the chunks, once.

        Raises: UpstreamError where the worker breaks off.
        """
        ...

    async def aclose(self) -> None:
        """Give up what was not read. Harmless when repeated and after the end."""
        ...


class Reply(msgspec.Struct, kw_only=True):
    """A worker's answer: status, end-to-end headers, and the body whole or as it arrives.

    A stream holds the worker's lease until it is exhausted or closed; whoever drops a reply before its end
    must `aclose()` it. Content-Length is kept with a stream and for HEAD; for whole bodies it is always
    written anew, so a middleware may simply set `body`.
    """

    status: int
    headers: Headers
    body: bytes | ByteStream

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Return the whole body, reading a streamed one to its end.

        Raises: UpstreamError where the body is longer than `max_bytes`; the rest is then not read.
        """
        if isinstance(self.body, bytes):
            return self.body
        chunks: list[bytes] = []
        size_bytes = 0
        try:
            async for chunk in self.body:
                size_bytes += len(chunk)
                if max_bytes is not None and size_bytes > max_bytes:
                    raise UpstreamError(f"The worker's reply is longer than {max_bytes} bytes")
                chunks.append(chunk)
        finally:
            await self.body.aclose()
        self.body = b"".join(chunks)
        return self.body

    async def aclose(self) -> None:
        """Give the worker back without reading the rest. Harmless when repeated."""
        if not isinstance(self.body, bytes):
            await self.body.aclose()

    def header(self, name: bytes) -> bytes | None:
        """Return the first header field called `name` (lower-case), or None."""
        return next((value for key, value in self.headers if key == name), None)

    @classmethod
    def of_json(cls, value: object, status: int = 200) -> Self:
        """Return a JSON reply of our own."""
        return cls(status=status, headers=[(b"content-type", b"application/json")], body=_encode_json(value))

    @classmethod
    def of_error(cls, error: HttpError) -> Self:
        """Return the reply that tells a client of `error`."""
        return cls(status=error.status, headers=error.headers(), body=error.body())


Handler = Callable[[Call], Awaitable[Reply]]
"""The rest of the way: the next middleware, and in the end the worker."""


class Middleware(Protocol):
    """Sees every data-plane call. Inherit `MiddlewareBase` and only `__call__` is left to write."""

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        """Answer `call`, usually by `await forward(call)`.

        Raises: HttpError to end the call with that status.
        """
        ...

    async def start(self, forward: Handler) -> None:
        """Run once before the first call; `forward` stays valid and reaches any worker."""
        ...

    async def aclose(self) -> None:
        """Run once after the last call."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Return what `/metrics` shows: metric name without prefix -> value. `_total` marks counters."""
        ...

    def routes(self) -> "APIRouter | None":
        """Return HTTP endpoints of the middleware's own, or None."""
        ...


class MiddlewareBase:
    """Defaults for everything but `__call__`: nothing to start, close, count or serve."""

    async def start(self, forward: Handler) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""

    def stats(self) -> Mapping[str, float]:
        """Return nothing to show."""
        return {}

    def routes(self) -> "APIRouter | None":
        """Return no endpoints."""
        return None


MiddlewareFactory = Callable[..., Middleware]
"""Makes a middleware from keyword arguments (`--middleware-arg name.key=value`)."""


def stack(middleware: list[Middleware], innermost: Handler) -> list[Handler]:
    """Return the handlers from the outermost to `innermost`; the first runs the whole stack."""
    handlers = [innermost]
    for layer in reversed(middleware):
        handlers.insert(0, _bind(layer, handlers[0]))
    return handlers


def _bind(layer: Middleware, forward: Handler) -> Handler:
    async def handle(call: Call) -> Reply:
        return await layer(call, forward)

    return handle


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
