"""Runs the router as a process: sockets, event loop, garbage collector, and its beginning."""

import asyncio
import contextlib
import gc
import logging
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Final

import uvloop

from ..errors import ConfigError
from ..version import __version__
from .allocator import keep_freed_memory
from .app import RouterApp, create_app
from .asgi_exchange import Application
from .http_server import HttpServer
from .logs import configure_logging
from .metrics import MetricsEndpoint
from .settings import RouterSettings
from .tls import server_context

GC_THRESHOLD: Final = 50_000
"""Container allocations before a young collection. A decoded reply of 1,024 tokens makes thousands of them,
none cyclic: looking for cycles among them at every 700th is wasted."""

BACKLOG: Final = 4096
"""Connections that may wait to be accepted while thousands of rollouts start at once."""

MAX_FILES: Final = 1 << 20
"""Open files that are asked for; every call in flight holds two sockets."""

_log = logging.getLogger("espalier.router")


def run(settings: RouterSettings) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status: 0, or 128 and the number of a second signal.

    Raises: ConfigError where a setting cannot be met, a port in use included.
    """
    configure_logging(settings.log_level, settings.log_format)
    app, tls = create_app(settings), _tls(settings)
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(listen(settings.host, settings.port))
        metrics_listener = None
        if settings.prometheus_port is not None:
            host = settings.prometheus_host or settings.host
            metrics_listener = sockets.enter_context(
                listen(host, settings.prometheus_port, flags="--prometheus-host and --prometheus-port")
            )
        raise_file_limit()
        keep_freed_memory()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        return uvloop.run(_serve(app, listener, metrics_listener, tls, settings))


def check(settings: RouterSettings) -> None:
    """Check what can be checked without listening: plug-ins, files, keys, worker URLs.

    Raises: ConfigError where `run` would, for any of these.
    """
    create_app(settings)
    _tls(settings)


async def _serve(
    app: RouterApp,
    listener: socket.socket,
    metrics_listener: socket.socket | None,
    tls: ssl.SSLContext | None,
    settings: RouterSettings,
) -> int:
    server = HttpServer(
        app,
        listener,
        tls=tls,
        grace_s=settings.shutdown_grace_period_secs,
        on_ready=lambda: _announce(listener, settings, app),
        on_stop=app.stop,
    )
    async with app.running(), _also_serving(MetricsEndpoint(app.metrics), metrics_listener):
        await server.serve()
    return 0 if server.forced_by is None else 128 + server.forced_by


@contextlib.asynccontextmanager
async def _also_serving(endpoint: Application, listener: socket.socket | None) -> AsyncIterator[None]:
    """Serve metrics on a port of their own while the block lasts, the router's last calls included."""
    if listener is None:
        yield
        return
    server = HttpServer(endpoint, listener, grace_s=0)
    serving = asyncio.create_task(server.serve_quietly())
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def _announce(listener: socket.socket, settings: RouterSettings, app: RouterApp) -> None:
    """Say what runs, and where: for people, and for the process that started it."""
    _log.info(
        "event=router_started version=%s workers=%d policy=%s middleware=%r keys=%s",
        __version__,
        len(settings.worker_urls),
        settings.policy,
        " ".join(settings.middleware),
        "asked_for" if app.gate else "none",
    )
    host, port = listener.getsockname()[:2]
    named = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls_cert_path else "http"
    print(f"event=router_ready url={scheme}://{named}:{port}", flush=True)  # noqa: T201  the announcement


def _tls(settings: RouterSettings) -> ssl.SSLContext | None:
    return server_context(settings.tls_cert_path, settings.tls_key_path, settings.tls_ca_cert_path)


def listen(host: str, port: int, *, flags: str = "--host and --port") -> socket.socket:
    """Return a listening socket.

    Raises: ConfigError in one sentence, where the port is taken or the address is not ours; it names `flags`.
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
            f"cannot listen on {host}:{port}: {error.strerror}; {flags} choose another address"
        ) from None
    return listener


def raise_file_limit() -> None:
    """Let the process open as many sockets as it may, up to `MAX_FILES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
