"""Runs the router as a process: socket, event loop, garbage collector, signals."""

import gc
import logging
import resource
import socket
from typing import Final

import uvicorn

from ..errors import ConfigError
from .app import create_app
from .protocol import CoalescingProtocol
from .settings import RouterSettings

GC_THRESHOLD: Final = 50_000
"""Container allocations before a young collection. A decoded reply of 1,024 tokens makes thousands of them,
none cyclic; at the default of 700 half of the time went into looking for cycles."""

BACKLOG: Final = 4096
"""Connections that may wait to be accepted while thousands of rollouts start at once."""


def run(settings: RouterSettings) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status.

    Raises: ConfigError where a setting cannot be met, a port in use included.
    """
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    app = create_app(settings)
    listener = listen(settings.host, settings.port)
    raise_file_limit()
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=CoalescingProtocol,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_period_secs)),
        backlog=BACKLOG,
    )
    server = _AnnouncingServer(config, listener)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises: ConfigError in one sentence, where the port is taken or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; --host and --port choose another address"
        ) from None
    return listener


def raise_file_limit() -> None:
    """Let the process open as many sockets as its hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _AnnouncingServer(uvicorn.Server):
    """Says where it listens once it does, for people and for the process that started it."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self._listener.getsockname()[:2]
            print(f"event=router_ready url=http://{host}:{port}", flush=True)  # noqa: T201  the announcement
