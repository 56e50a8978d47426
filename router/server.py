"""Runs the router as a process: socket, event loop, garbage collector, signals."""

import contextlib
import gc
import resource
import signal
import socket
from collections.abc import Generator
from typing import Final

import uvicorn
import uvloop

from ..errors import ConfigError
from .app import RouterApp, create_app
from .logs import configure_logging
from .protocol import CoalescingProtocol
from .settings import RouterSettings

GC_THRESHOLD: Final = 50_000
"""Container allocations before a young collection. A decoded reply of 1,024 tokens makes thousands of them,
none cyclic: looking for cycles among them at every 700th is wasted."""

BACKLOG: Final = 4096
"""Connections that may wait to be accepted while thousands of rollouts start at once."""

MAX_FILES: Final = 1 << 20
"""Open files that are asked for; every call in flight holds two sockets."""


def run(settings: RouterSettings) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status.

    Raises: ConfigError where a setting cannot be met, a port in use included.
    """
    configure_logging(settings.log_level, settings.log_format)
    app = create_app(settings)
    raise_file_limit()
    with listen(settings.host, settings.port) as listener:
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        uvloop.run(_serve(app, listener, settings))
    return 0


async def _serve(app: RouterApp, listener: socket.socket, settings: RouterSettings) -> None:
    config = uvicorn.Config(
        app,
        http=CoalescingProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(settings.shutdown_grace_period_secs),
        backlog=BACKLOG,
    )
    async with app.running():
        await _Server(config, listener).serve(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises: ConfigError in one sentence, where the port is taken or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; --host and --port choose another address"
        ) from None
    return listener


def raise_file_limit() -> None:
    """Let the process open as many sockets as it may, up to `MAX_FILES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    """Says where it listens once it does, for people and for the process that started it."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self._listener.getsockname()[:2]
            named = f"[{host}]" if ":" in host else host
            print(f"event=router_ready url=http://{named}:{port}", flush=True)  # noqa: T201  the announcement

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
