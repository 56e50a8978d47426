"""A router as it runs in production, and the odd workers that it meets."""

import contextlib
import socket
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import uvloop

from espalier.router.app import RouterApp, create_app
from espalier.router.protocol import RouterProtocol
from espalier.router.settings import RouterSettings
from tests.serving import serve

DEADLINE_S = 20.0
"""How long a test waits for what must happen, on a slow machine."""


@contextlib.contextmanager
def router(*worker_urls: str, **settings: Any) -> Iterator[httpx.Client]:
    """Run a router, plain unless `settings` name middleware; yields a client of it.

    Nobody probes its workers unless `disable_health_check` is False: they see calls only.
    """
    options: dict[str, Any] = {"middleware": ("none",), "disable_health_check": True, **settings}
    with serving(create_app(RouterSettings(worker_urls=worker_urls, **options))) as client:
        yield client


@contextlib.contextmanager
def serving(app: RouterApp) -> Iterator[httpx.Client]:
    """Serve `app` on the event loop and the protocol of production; yields a client of it."""
    with (
        _nothing_left_open(),
        serve(
            app,
            loop_factory=uvloop.new_event_loop,
            http=RouterProtocol,
            ws="none",
            proxy_headers=False,
            server_header=False,
            date_header=False,
        ) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=DEADLINE_S) as client,
    ):
        yield client


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run `test` on the event loop of production."""
    with _nothing_left_open():
        uvloop.run(test)


@contextlib.contextmanager
def _nothing_left_open() -> Iterator[None]:
    """Check that no connection outlives its loop.

    uvloop warns of one that does; raised as an error, the warning would keep the loop from ever closing.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", category=ResourceWarning)
        yield
    assert [str(warning.message) for warning in told] == []


@contextlib.contextmanager
def connection_to(client: httpx.Client) -> Iterator[socket.socket]:
    """Connect a bare socket to the router that `client` talks to."""
    port = client.base_url.port
    assert port is not None
    with socket.create_connection((client.base_url.host, port), timeout=DEADLINE_S) as bare:
        yield bare


@contextlib.contextmanager
def closed_port() -> Iterator[socket.socket]:
    """Hold a port that refuses connections, until somebody calls `listen()` on it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder


@contextlib.contextmanager
def closed_port_url() -> Iterator[str]:
    """Hold the URL of a worker that refuses connections."""
    with closed_port() as holder:
        yield url_of(holder)


@contextlib.contextmanager
def unaccepting_url() -> Iterator[str]:
    """Hold the URL of a worker that neither takes connections nor refuses them: its queue is full."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(closed_port())
        listener.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield url_of(listener)


def url_of(listener: socket.socket) -> str:
    """Return the URL of what listens there."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)


def worker_of(client: httpx.Client) -> dict[str, Any]:
    """Return how the router describes its first worker."""
    first: dict[str, Any] = client.get("/workers").json()["workers"][0]
    return first
