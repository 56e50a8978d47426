"""Serves a simulated worker: binds the port, says when it is ready, drains on SIGTERM.

As with a real worker, /health says 503 from SIGTERM on while `/generate` still takes requests until none is
left; a second signal ends it at once. A request that kills a worker ends the process, with every connection.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn

from ..errors import ConfigError
from .app import WorkerApp, create_app
from .settings import WorkerSettings
from .worker import Worker

EXIT_DIED = 1
"""Exit status of a worker that a request has killed."""

BACKLOG = 2048
"""Connections that may wait to be accepted."""

GC_THRESHOLD = 50_000
"""A reply of 1,024 tokens with log-probabilities makes 2,000 containers, which reference counting frees."""

GRACE_S = 2
"""Time that replies on their way get when the worker ends."""


def run(settings: WorkerSettings) -> int:
    """Serve until a signal; return the exit status.

    Prints `event=worker_ready url=…` once connections are accepted. Raises: ConfigError where the address
    cannot be listened on.
    """
    listener = bind(settings.host, settings.port)
    app = create_app(settings, on_death=_die)
    server = WorkerServer(app, listener, settings)
    app.refuse = server.refuse
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    with listener:
        server.run(sockets=[listener])
    return 0


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address; port 0 takes a free one.

    Raises: ConfigError.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return _bind(family, address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose another --port") from error


class WorkerServer(uvicorn.Server):
    """uvicorn with a drain like SGLang's and a listening socket that can be closed for a while."""

    def __init__(self, app: WorkerApp, listener: socket.socket, settings: WorkerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                lifespan="off",
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._worker: Worker = app.worker
        self._address = listener.getsockname()
        self._family = listener.family
        self._drain_s = settings.drain_s
        self._drain_until: float | None = None
        self._reopening: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where the worker listens."""
        host, port = self._address[:2]
        return f"http://[{host}]:{port}" if self._family == socket.AF_INET6 else f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say so."""
        await super().startup(sockets)
        print(f"event=worker_ready url={self.url}", flush=True)  # noqa: T201  whoever started it waits for this

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal, or Ctrl-C, end."""
        del frame
        if sig == signal.SIGINT or self._worker.is_draining:
            self.should_exit = True
            return
        self._worker.is_draining = True
        self._drain_until = time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        """End when the drain is over: nothing runs any more, or time is up. What still runs is aborted."""
        scheduler = self._worker.scheduler
        if self._drain_until is not None and (scheduler.is_idle or time.monotonic() >= self._drain_until):
            self.should_exit = True
        if self.should_exit:
            scheduler.abort_all()
        return await super().on_tick(counter)

    def refuse(self, duration_s: float) -> None:
        """Refuse connections for so long, then listen on the same address again."""
        if self._reopening is None:
            self._reopening = asyncio.get_running_loop().create_task(self._close_and_reopen(duration_s))

    async def _close_and_reopen(self, duration_s: float) -> None:
        for server in self.servers:
            server.close()
        self.servers.clear()
        await asyncio.sleep(duration_s)
        listener = _bind(self._family, self._address)
        loop = asyncio.get_running_loop()
        self.servers.append(await loop.create_server(self._protocol, sock=listener, backlog=BACKLOG))
        self._reopening = None

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _die(reason: str) -> None:
    """End the process as a crash does: no reply, no goodbye."""
    print(f"event=worker_died reason={reason!r}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(EXIT_DIED)
