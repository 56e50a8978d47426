"""Puts the router together: `create_app(settings)` is a FastAPI application with the data plane in front."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

from fastapi import FastAPI
from starlette.routing import BaseRoute

from ..calls import stack
from ..errors import BadRequest, ConfigError
from ..version import __version__
from .data_plane import DataPlane, Message, Receive, Scope, Send
from .fleet import Fleet
from .fleet_routes import fleet_routes
from .forwarder import Forwarder
from .metrics import RouterCollector, registry_of
from .plugins import make_middleware, make_policy
from .prober import Prober, revive_unseen
from .responses import tell_errors
from .settings import RouterSettings
from .status_routes import status_routes
from .upstream import Upstream
from .worker_file import WorkerFile
from .worker_routes import worker_routes
from .workers import WorkerPool

Watcher = Callable[[], Coroutine[None, None, None]]
"""Runs in the background until cancelled."""


class RouterApp(FastAPI):
    """FastAPI for the router's own endpoints; every other path goes to the data plane, past all routing."""

    data_plane: DataPlane
    own_paths: "OwnPaths"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif scope["path"] not in self.own_paths:
            await self.data_plane(scope, receive, send)
        else:
            body = await self.data_plane.read_body(scope, receive, send)
            if body is not None:
                await super().__call__(scope, _replayed(body, receive), send)

    def running(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Run what works in the background while the block lasts; the lifespan does the same."""
        return self.router.lifespan_context(self)


class OwnPaths:
    """The paths that an application's routes answer: whole ones, and beginnings of those with parameters."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        paths = [str(getattr(route, "path", "")) for route in routes]
        self._whole = frozenset(path for path in paths if "{" not in path)
        self._beginnings = tuple({path.partition("{")[0] for path in paths if "{" in path})

    def __contains__(self, path: str) -> bool:
        """Tell whether the application answers `path`."""
        return path in self._whole or path.startswith(self._beginnings)


def create_app(settings: RouterSettings) -> RouterApp:
    """Return the router as an ASGI application; its lifespan must be run.

    Raises: ConfigError, PluginError where `settings` cannot be met.
    """
    policy = make_policy(settings.policy)
    middleware = make_middleware(
        settings.middleware, settings.middleware_arg, tokenizer_path=settings.tokenizer_path
    )
    pool = _make_pool(settings)
    calls, control = _make_upstream(settings), _make_upstream(settings)
    handlers = stack(middleware, Forwarder(pool, policy, calls))
    watchers = _make_watchers(settings, pool)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as running:
            running.callback(calls.close_idle)
            running.callback(control.close_idle)
            for layer, forward in reversed(list(zip(middleware, handlers[1:], strict=True))):
                await layer.start(forward)
                running.push_async_callback(layer.aclose)
            for watch in watchers:
                await running.enter_async_context(_in_background(watch))
            yield

    app = RouterApp(title="Espalier", version=__version__, lifespan=lifespan)
    tell_errors(app)
    app.data_plane = DataPlane(handlers[0], max_body_bytes=settings.max_payload_size)
    routers = [
        worker_routes(pool),
        fleet_routes(Fleet(pool, control)),
        status_routes(pool, registry_of(RouterCollector(pool, app.data_plane, middleware))),
        *(routes for layer in middleware if (routes := layer.routes()) is not None),
    ]
    app.own_paths = OwnPaths([*app.routes, *(route for router in routers for route in router.routes)])
    for router in routers:
        app.include_router(router)
    return app


def _make_pool(settings: RouterSettings) -> WorkerPool:
    pool = WorkerPool(
        failure_threshold=settings.health_failure_threshold,
        success_threshold=settings.health_success_threshold,
        allow_stale_workers=settings.allow_stale_workers,
    )
    for url in settings.worker_urls:
        try:
            pool.add(url)
        except BadRequest as error:
            raise ConfigError(f"--worker-urls: {error.message}") from None
    return pool


def _make_watchers(settings: RouterSettings, pool: WorkerPool) -> list[Watcher]:
    """Return what follows the workers in the background; a worker file is read now.

    Raises: ConfigError where the file cannot be used.
    """
    interval_s = settings.health_check_interval_secs
    prober = Prober(
        pool,
        interval_s=interval_s,
        timeout_s=settings.health_check_timeout_secs,
        endpoint=settings.health_check_endpoint,
    )
    watchers: list[Watcher] = [prober.run]
    if settings.disable_health_check:
        watchers = [lambda: revive_unseen(pool, interval_s=interval_s)]
    if settings.worker_file is not None:
        worker_file = WorkerFile(pool, settings.worker_file)
        worker_file.load()
        watchers.append(worker_file.run)
    return watchers


def _make_upstream(settings: RouterSettings) -> Upstream:
    return Upstream(
        connect_timeout_s=settings.connect_timeout_secs, request_timeout_s=settings.request_timeout_secs
    )


@contextlib.asynccontextmanager
async def _in_background(watch: Watcher) -> AsyncIterator[None]:
    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return `receive` for an application, with the whole body first."""
    is_first = True

    async def replay() -> Message:
        nonlocal is_first
        if is_first:
            is_first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
