"""Pooled connections to workers.

Idle connections are kept for less time than a worker keeps its end open (SGLang closes after 5 s), the most
recently used one is taken first, and there is no cap on their number: a call never waits for a connection.
A kept connection can still turn out dead when it is used, which shows at once; if not a byte of the reply
has come by then, the request is sent once more, on a fresh one. One that ends later had a worker behind it.

Each `Upstream` has connections of its own: a probe never shares one, or its deadline, with a call.
"""

import asyncio
import errno
from collections import deque
from typing import Final

from ..calls import Call, Reply
from .auth import WorkerCredentials
from .connection import Connection, Deadlines
from .course import in_a_task
from .delays import DelayQueue
from .failures import ConnectFailed, ConnectionDropped, ConnectTimeout, OutOfSockets
from .headers import request_head
from .origin import Origin

_OUT_OF_SOCKETS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL})
"""What the system says where this side has no file or no port left for a connection."""

SOCKET_RETRY_AFTER_S: Final = 1
"""What a client is told to wait when there is no socket for its call: calls end all the time."""

IDLE_TIMEOUT_S: Final = 2.0
"""How long an unused connection is kept; workers close theirs after 5 s."""


STALE_WITHIN_S: Final = 1.0
"""A connection that was closed before a request was sent says so within a round trip, and whatever this
process is late by. After that, the worker has read the request, and may have begun it."""


class Upstream:
    """Sends calls to origins, within `request_timeout_s` to the last byte of each reply."""

    def __init__(
        self,
        *,
        connect_timeout_s: float,
        request_timeout_s: float,
        first_byte_timeout_s: float | None = None,
        between_bytes_timeout_s: float | None = None,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        stale_within_s: float = STALE_WITHIN_S,
        credentials: WorkerCredentials | None = None,
    ) -> None:
        """Send each call with `credentials` in place of its own, where they are given."""
        self._credentials = credentials
        self._connect_timeout_s = connect_timeout_s
        self._stale_within_s = stale_within_s
        self._deadlines = Deadlines(
            request_s=request_timeout_s,
            first_byte_s=first_byte_timeout_s,
            between_bytes_s=between_bytes_timeout_s,
        )
        self._idle: dict[Origin, deque[Connection]] = {}
        self._expiries: DelayQueue[Connection] = DelayQueue(idle_timeout_s, self._drop)

    async def send(
        self,
        origin: Origin,
        call: Call,
        *,
        body: bytes | None = None,
        spent_s: float = 0.0,
        on_fresh: bool = False,
        may_resend: bool = True,
    ) -> Reply:
        """Send `call`, with `body` in place of its own if given; return its reply, whole or as a stream.

        `spent_s` of the time for the request have gone by. `on_fresh` asks for a new connection. With
        `may_resend`, a kept connection that turns out dead costs nothing; else it is told as `is_stale`.

        Raises: ConnectFailed (nothing was sent), ConnectionDropped, UpstreamTimeout, UpstreamError.
        """
        content = call.body if body is None else body
        headers = call.headers if self._credentials is None else self._credentials.applied(call.headers)
        head = request_head(call.method, origin.prefix + call.target, origin.authority, headers, len(content))
        head_only = call.method == "HEAD"
        connection = None if on_fresh else self._take(origin)
        if connection is None:
            connection = await self._connect(origin)
            return await connection.exchange(
                head, content, head_only=head_only, on_end=self._keep, spent_s=spent_s
            )
        sent_at_s = connection.loop.time()
        try:
            return await connection.exchange(
                head, content, head_only=head_only, on_end=self._keep, spent_s=spent_s
            )
        except ConnectionDropped as error:
            took_s = connection.loop.time() - sent_at_s
            error.is_stale = not error.reply_begun and took_s < self._stale_within_s
            if not (error.is_stale and may_resend):
                raise
            dropped = error
        try:
            connection = await self._connect(origin)
        except ConnectFailed:
            # The worker may have read the request before it went: this is no "nothing was sent".
            raise dropped from None
        return await connection.exchange(
            head, content, head_only=head_only, on_end=self._keep, spent_s=spent_s
        )

    def close_idle(self) -> None:
        """Close all connections that no call is using."""
        for connections in self._idle.values():
            for connection in connections:
                self._expiries.discard(connection)
                connection.abort()
        self._idle.clear()

    async def _connect(self, origin: Origin) -> Connection:
        await in_a_task()
        loop = asyncio.get_running_loop()
        connection = Connection(origin, loop, self._deadlines)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await loop.create_connection(lambda: connection, origin.host, origin.port)
        except asyncio.CancelledError:
            connection.abort()  # it may have been made in the same turn
            raise
        except TimeoutError:
            connection.abort()
            raise ConnectTimeout(
                f"The worker {origin} took no connection within {self._connect_timeout_s:g} s"
            ) from None
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno in _OUT_OF_SOCKETS:
                raise OutOfSockets(
                    f"The router has no socket left to reach {origin} with ({error.strerror}): raise its"
                    " limit of open files, or lower --max-concurrent-requests",
                    retry_after_s=SOCKET_RETRY_AFTER_S,
                ) from None
            raise ConnectFailed(f"The worker {origin} took no connection: {error}") from None
        return connection

    def _take(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            self._expiries.discard(connection)
            if connection.is_reusable:
                return connection
        return None

    def _keep(self, connection: Connection) -> None:
        """Keep a connection whose exchange has ended, if it can be used again."""
        if connection.is_reusable:
            self._idle.setdefault(connection.origin, deque()).append(connection)
            self._expiries.add(connection, connection.loop)

    def _drop(self, connection: Connection) -> None:
        """Close a connection that was idle for too long: the oldest of its origin, so it stands first."""
        idle = self._idle[connection.origin]
        idle.popleft()
        if not idle:
            del self._idle[connection.origin]
        connection.abort()
