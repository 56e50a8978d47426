"""Pooled connections to workers.

Idle connections are kept for less time than a worker keeps its end open (SGLang closes after 5 s), the most
recently used one is taken first, and there is no cap on their number: a call never waits for a connection.
A kept connection can still turn out dead when it is used; if not a byte of the reply has come by then, the
request is sent once more, on a fresh one.
"""

import asyncio
import time
from collections import deque
from typing import Final
from urllib.parse import urlsplit

from ..calls import Call, Reply
from ..errors import BadRequest
from .connection import ConnectFailed, Connection, ConnectionDropped
from .delays import DelayQueue
from .headers import request_head

IDLE_TIMEOUT_S: Final = 2.0
"""How long an unused connection is kept; workers close theirs after 5 s."""


class Origin:
    """Where a worker listens, and the idle connections to it."""

    def __init__(self, url: str) -> None:
        """Parse `url`, such as `http://10.0.0.1:30001`.

        Raises: BadRequest where it is not an http URL with a host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadRequest(f"The worker URL {url!r} is not valid: {error}") from None
        if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise BadRequest(f"The worker URL {url!r} is not valid: expected http://host:port")
        self.host: str = parts.hostname
        self.port: int = port or 80
        self.authority = parts.netloc.encode("idna" if not parts.netloc.isascii() else "ascii")
        self.prefix = parts.path.rstrip("/").encode()
        self.label = f"{self.host}:{self.port}"
        self._idle: deque[Connection] = deque()

    def take_idle(self) -> Connection | None:
        """Return the connection that was used last, if it is still fresh and open."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                if connection.idle_since_s >= time.monotonic() - IDLE_TIMEOUT_S:
                    return connection
                connection.abort()
        return None

    def keep(self, connection: Connection) -> None:
        """Keep a connection whose exchange has ended, if it can be used again; close those kept too long."""
        if not connection.is_reusable:
            return
        connection.idle_since_s = now_s = time.monotonic()
        self._idle.append(connection)
        while self._idle[0].idle_since_s < now_s - IDLE_TIMEOUT_S:
            self._idle.popleft().abort()

    def close_idle(self) -> None:
        """Close the connections that no call is using."""
        while self._idle:
            self._idle.pop().abort()


class Upstream:
    """Sends calls to origins."""

    def __init__(self, *, connect_timeout_s: float, request_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._deadlines: DelayQueue[Connection] = DelayQueue(request_timeout_s, Connection.time_out)

    async def send(self, origin: Origin, call: Call) -> Reply:
        """Send `call`; return its reply, whole or as a stream.

        Raises: ConnectFailed (nothing was sent), ConnectionDropped, UpstreamTimeout, UpstreamError.
        """
        request = (
            request_head(
                call.method, origin.prefix + call.target, origin.authority, call.headers, len(call.body)
            )
            + call.body
        )
        head_only = call.method == "HEAD"
        connection = origin.take_idle()
        if connection is not None:
            try:
                return await connection.exchange(request, head_only=head_only, on_end=origin.keep)
            except ConnectionDropped as error:
                if error.reply_begun:
                    raise
        connection = await self._connect(origin)
        return await connection.exchange(request, head_only=head_only, on_end=origin.keep)

    async def _connect(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(origin.label, loop, self._deadlines), origin.host, origin.port
                )
        except TimeoutError:
            raise ConnectFailed(
                f"The worker {origin.label} took no connection within {self._connect_timeout_s:g} s"
            ) from None
        except OSError as error:
            raise ConnectFailed(f"The worker {origin.label} took no connection: {error}") from None
        return connection
