"""Puts the router together: `create_app(settings)` is a FastAPI application with the data plane in front."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from fastapi import FastAPI
from starlette.routing import BaseRoute

from ..calls import stack
from ..errors import BadRequest, ConfigError
from ..version import __version__
from .aggregate_routes import aggregate_routes
from .aggregates import Aggregates
from .data_plane import DataPlane, Message, Receive, Scope, Send
from .engine_gate import EngineGate
from .engine_routes import engine_routes
from .fleet import Fleet
from .fleet_routes import fleet_routes
from .forwarder import Forwarder
from .metrics import RouterCollector, registry_of
from .plugins import make_middleware, make_policy
from .prober import Prober
from .responses import tell_errors
from .settings import RouterSettings
from .status_routes import status_routes
from .upstream import Upstream
from .weight_routes import weight_routes
from .weight_updater import WeightUpdater
from .worker_routes import worker_routes
from .workers import WorkerPool


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
    calls, control = _make_upstream(settings), _make_control_upstream(settings)
    fleet = Fleet(pool, control, concurrency=settings.fleet_concurrency)
    updater = WeightUpdater(pool, fleet)
    handlers = stack(middleware, Forwarder(pool, policy, calls))
    prober = Prober(
        pool,
        interval_s=settings.health_check_interval_secs,
        timeout_s=settings.health_check_timeout_secs,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as running:
            running.callback(calls.close_idle)
            running.callback(control.close_idle)
            for layer, forward in reversed(list(zip(middleware, handlers[1:], strict=True))):
                await layer.start(forward)
                running.push_async_callback(layer.aclose)
            await running.enter_async_context(_in_background(prober))
            running.push_async_callback(updater.aclose)
            yield

    app = RouterApp(title="Espalier", version=__version__, lifespan=lifespan)
    tell_errors(app)
    app.data_plane = DataPlane(handlers[0], max_body_bytes=settings.max_payload_size)
    aggregates = Aggregates(pool, fleet)
    gate, from_one = (
        DataPlane(handler, max_body_bytes=settings.max_payload_size)
        for handler in (EngineGate(pool, fleet, control), aggregates.from_one)
    )
    routers = [
        engine_routes(pool, fleet, gate),  # before the workers, whose paths begin the same
        worker_routes(pool),
        fleet_routes(pool, fleet),
        weight_routes(pool, fleet, updater),
        aggregate_routes(pool, aggregates, from_one),
        status_routes(pool, registry_of(RouterCollector(pool, app.data_plane, middleware))),
        *(routes for layer in middleware if (routes := layer.routes()) is not None),
    ]
    app.own_paths = OwnPaths([*app.routes, *(route for router in routers for route in router.routes)])
    for router in routers:
        app.include_router(router)
    return app


def _make_pool(settings: RouterSettings) -> WorkerPool:
    pool = WorkerPool(failure_threshold=settings.health_failure_threshold)
    for url in settings.worker_urls:
        try:
            pool.add(url)
        except BadRequest as error:
            raise ConfigError(f"--worker-urls: {error.message}") from None
    return pool


def _make_upstream(settings: RouterSettings) -> Upstream:
    return Upstream(
        connect_timeout_s=settings.connect_timeout_secs, request_timeout_s=settings.request_timeout_secs
    )


def _make_control_upstream(settings: RouterSettings) -> Upstream:
    """Return connections for control calls, none of them kept: such a call is never sent twice."""
    return Upstream(
        connect_timeout_s=settings.connect_timeout_secs,
        request_timeout_s=settings.fleet_timeout_secs,
        idle_timeout_s=0.0,
    )


@contextlib.asynccontextmanager
async def _in_background(prober: Prober) -> AsyncIterator[None]:
    probing = asyncio.create_task(prober.run())
    try:
        yield
    finally:
        probing.cancel()
        await asyncio.wait([probing])


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
