"""The connections of the rollout client, and the one place that knows the errors of the libraries below.

Generations go straight over aiohttp: of the CPU time that a sample of 1,024 tokens took the client, httpx's
layer above it was a third. What is asked rarely goes through httpx's interface, over aiohttp's pool all the
same: httpx's own searches all connections for each request, and at 512 connections did 80 requests/s where
aiohttp's did 1,063 (1 core, replies of 700 bytes).
"""

import contextlib
import functools
import io
import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from ..errors import UpstreamError
from .problems import RouterUnreachable

KEEPALIVE_EXPIRY_S: Final = 2.0
"""Servers close an idle connection after about 5 s; one that is given up before is never dead on reuse."""

CONNECT_TIMEOUT_S: Final = 5.0
"""Time for a TCP (and TLS) handshake: a host that takes longer is not there."""

READ_AHEAD_BYTES: Final = 1 << 20
"""What may come of a reply before its reader runs: one of 16,000 tokens is then read without pauses."""

_LARGE_BODY_BYTES: Final = 1 << 20
"""A longer body is handed to aiohttp as a file, which it writes in pieces; of bytes it then warns."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A reply. Its body is there as a whole, unless it is `open`."""

    status: int
    body: bytes
    retry_after: str | None
    open: "OpenBody | None" = None

    @property
    def is_success(self) -> bool:
        """Whether it is 2xx."""
        return self.status < 300


class OpenBody:
    """A body that is still coming. Close it, read or not."""

    def __init__(self, request: str, response: aiohttp.ClientResponse) -> None:
        self._request = request
        self._response = response

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises: UpstreamError where the connection is lost.
        """
        with _told_as_ours(self._request):
            async for chunk in self._response.content.iter_any():
                yield chunk

    def close(self) -> None:
        """Close the connection, unless the whole body was read."""
        self._response.close()


class GenerationPool:
    """Connections for calls that may take minutes. Opened with the first call, on its event loop."""

    def __init__(self, base_url: str, *, max_connections: int) -> None:
        """Open no more than `max_connections` at a time; the environment's proxy variables are left aside."""
        self._base_url = base_url
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str], *, leaves_open: bool = False
    ) -> HttpReply:
        """Send a call once; return its reply, of which the body is still to come if it `leaves_open` one.

        A reply that is no success is always read whole.

        Raises: RouterUnreachable where nothing was sent, UpstreamError where the connection was lost later.
        """
        url = self._base_url + path
        request = f"POST {url}"
        data = body if len(body) < _LARGE_BODY_BYTES else io.BytesIO(body)
        with _told_as_ours(request):
            response = await self._opened().post(url, data=data, headers=headers, allow_redirects=False)
            retry_after = response.headers.get("retry-after")
            if leaves_open and response.status < 300:
                return HttpReply(response.status, b"", retry_after, OpenBody(request, response))
            return HttpReply(response.status, await response.read(), retry_after)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._max_connections,
                    keepalive_timeout=KEEPALIVE_EXPIRY_S,
                    ssl=_tls_context(is_used=self._base_url.startswith("https:")),
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=READ_AHEAD_BYTES,
                trust_env=False,
            )
        return self._session


def open_control_client(base_url: str, *, max_connections: int, read_timeout_s: float) -> httpx.AsyncClient:
    """Return a client with a pool of its own, which waits for a free connection without limit.

    The environment's proxy variables are left aside: a router is spoken to directly.
    """
    limits = httpx.Limits(max_connections=max_connections, keepalive_expiry=KEEPALIVE_EXPIRY_S)
    return httpx.AsyncClient(
        base_url=base_url,
        transport=AiohttpTransport(
            limits=limits, trust_env=False, verify=_tls_context(is_used=base_url.startswith("https:"))
        ),
        timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
        trust_env=False,
    )


@functools.cache
def _tls_context(*, is_used: bool) -> ssl.SSLContext:
    """Return the process's TLS settings; certificates take 50 ms to load, so plain HTTP goes without."""
    return httpx.create_ssl_context(trust_env=False) if is_used else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@contextlib.contextmanager
def _told_as_ours(request: str) -> Iterator[None]:
    """Raise what aiohttp raises in the block as an error of ours; `request` is the method and URL."""
    try:
        yield
    except aiohttp.ClientError as error:
        raise error_of(request, error) from error


def error_of(request: str, error: Exception) -> UpstreamError:
    """Return the error for what a library raised: whether a connection was made tells which it is.

    Without one nothing was sent, and the request may be sent again. httpx-aiohttp also names a connection
    that was lost a `ConnectTimeout`; what aiohttp raised tells them apart.
    """
    cause = error.__cause__ if isinstance(error, httpx.TransportError) else error
    if isinstance(cause, aiohttp.ClientConnectorDNSError):
        problem = f"unknown host {cause.host}"
    elif isinstance(cause, aiohttp.ClientConnectorError):
        problem = os.strerror(cause.errno) if cause.errno else str(cause)
    elif isinstance(cause, aiohttp.ConnectionTimeoutError):
        problem = f"no connection in {CONNECT_TIMEOUT_S:g} s"
    else:
        return UpstreamError(f"{request}: the connection was lost ({error})")
    return RouterUnreachable(f"{request}: nothing answers there: {problem}")
