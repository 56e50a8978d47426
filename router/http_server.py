"""uvicorn, with the end that a router needs.

On the first SIGINT or SIGTERM it stops to accept, and calls go on for the grace period; then, or on a second
signal, they are broken off: what has not begun its reply is told 503, a stream ends without its end, and the
workers' connections are closed. All of that in well under a second, so that nobody has to kill the process.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from types import FrameType
from typing import Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .app import KEEP_ALIVE_S, RouterApp
from .asgi_exchange import Application
from .protocol import RouterProtocol

POLL_S: Final = 0.02
"""How often the end looks whether the last calls have ended."""

BREAK_OFF_S: Final = 2.0
"""How long calls that are broken off may take to tell their clients and workers."""

_log = logging.getLogger("espalier.router")


class HttpServer(uvicorn.Server):
    """Serves `app` on `listener`; `on_ready` and `on_stop` are called as the one and the other begins.

    `on_stop` is called inside a signal handler: it may set a flag, and do no more.
    """

    def __init__(
        self,
        app: Application,
        listener: socket.socket,
        *,
        grace_s: float,
        tls: ssl.SSLContext | None = None,
        on_ready: Callable[[], None] | None = None,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=RouterProtocol if isinstance(app, RouterApp) else HttpToolsProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(KEEP_ALIVE_S),
        )
        config.load()
        config.ssl = tls
        super().__init__(config)
        self._listener = listener
        self._grace_s = grace_s
        self._on_ready = on_ready
        self._on_stop = on_stop
        self.forced_by: int | None = None
        """The second signal's number, if one came."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes."""
        await super().serve(sockets or [self._listener])

    async def serve_quietly(self) -> None:
        """Serve until `should_exit` is set; signals are for somebody else."""
        await self._serve([self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say so."""
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002  uvicorn's
        """Accept no more; let calls end, within the grace period; break off the rest."""
        await asyncio.sleep(POLL_S)  # takes in the connections that the kernel has taken for us already
        for server in self.servers:
            server.close()
        self._listener.close()
        for connection in self._connections():
            connection.shutdown()
        if self.server_state.tasks:
            _log.info(
                "event=router_stopping calls=%d grace_s=%g", len(self.server_state.tasks), self._grace_s
            )
        if not await self._all_ended(self._grace_s):
            running = list(self.server_state.tasks)
            _log.warning("event=calls_broken_off calls=%d", len(running))
            for task in running:
                task.cancel()
            self.force_exit = False
            await self._all_ended(BREAK_OFF_S)

    def _connections(self) -> list[HttpToolsProtocol]:
        connections = list(self.server_state.connections)
        return [connection for connection in connections if isinstance(connection, HttpToolsProtocol)]

    async def _all_ended(self, within_s: float) -> bool:
        """Tell whether calls end and the last bytes leave within some seconds, and before a second signal."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        while self.server_state.tasks or any(map(_is_busy, self._connections())):
            if self.force_exit or loop.time() >= deadline_s:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  signal's
        """Begin to end; at once, the second time."""
        if self.should_exit:
            self.force_exit = True
            self.forced_by = sig
        elif self._on_stop is not None:
            self._on_stop()
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop on SIGINT and SIGTERM. uvicorn would raise the signal again, and the exit status be not 0."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _is_busy(connection: HttpToolsProtocol) -> bool:
    """Tell whether bytes wait for the client; a TLS client that says no good-bye is not waited for."""
    transport = connection.transport
    return not transport.is_closing() or transport.get_write_buffer_size() > 0
