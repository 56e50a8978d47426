"""Puts the router together: `create_app(settings)` is a FastAPI application with the data plane in front."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..calls import Handler, Headers, Middleware, stack
from ..version import __version__
from .abort_routes import abort_routes
from .aborts import Aborter
from .access_log import log_call
from .aggregate_routes import aggregate_routes
from .aggregates import Aggregates
from .asgi_exchange import Receive, Scope, Send
from .auth import Gate
from .data_plane import DataPlane
from .delays import DelayQueue
from .engine_gate import EngineGate
from .engine_routes import engine_routes
from .fleet import Fleet
from .fleet_routes import fleet_routes
from .flights import Flights
from .forwarder import Forwarder
from .ledger import CallRecord, Ledger, OnEnd, duration_bounds_s, path_label
from .metrics import RouterCollector, registry_of
from .own_endpoints import OwnEndpoints
from .own_paths import OwnPaths
from .parts import Watcher, make_admission, make_gate, make_pool, make_retry_policy, make_watchers
from .plugins import make_middleware, make_policy
from .request_id import RequestIds
from .responses import tell_errors
from .settings import RouterSettings
from .status_routes import status_routes
from .tally import Tally
from .upstreams import Upstreams
from .weight_routes import weight_routes
from .weight_updater import WeightUpdater
from .worker_routes import worker_routes
from .workers import WorkerPool

KEEP_ALIVE_S: Final = 75.0
"""How long an idle client may keep its connection."""


class RouterApp(FastAPI):
    """FastAPI for the router's own endpoints; every other path goes to the data plane, past all routing."""

    data_plane: DataPlane
    own_paths: OwnPaths
    own_endpoints: OwnEndpoints
    metrics: CollectorRegistry
    gate: Gate | None = None
    idle_connections: "DelayQueue[HttpToolsProtocol]"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif self.gate and (refusal := self.gate.refusal(scope["path"], scope["headers"])):
            await self.own_endpoints.refuse(scope, send, refusal)
        elif scope["path"] not in self.own_paths:
            await self.data_plane(scope, receive, send)
        else:
            await self.own_endpoints(scope, receive, send)

    def takes_on_wire(self, path: str, headers: Headers) -> bool:
        """Tell whether a call may go straight to the data plane, past `__call__`."""
        return path not in self.own_paths and (self.gate is None or self.gate.refusal(path, headers) is None)

    def stop(self) -> None:
        """Tell from now on that the router is not ready; may be called by a signal handler."""
        self.own_endpoints.is_stopping = True

    def running(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Run what works in the background while the block lasts; the lifespan does the same."""
        return self.router.lifespan_context(self)


def create_app(settings: RouterSettings) -> RouterApp:
    """Return the router as an ASGI application; its lifespan must be run.

    Raises: ConfigError, PluginError where `settings` cannot be met.
    """
    policy = make_policy(
        settings.policy,
        settings.policy_arg,
        balance_abs_threshold=settings.balance_abs_threshold,
        balance_rel_threshold=settings.balance_rel_threshold,
    )
    middleware = make_middleware(
        settings.middleware, settings.middleware_arg, tokenizer_path=settings.tokenizer_path
    )
    pool, upstreams, tally, flights = make_pool(settings), Upstreams(settings), Tally(), Flights()
    aborter = Aborter(upstreams.aborts, tally)
    forwarder = Forwarder(
        pool,
        policy,
        upstreams.calls,
        aborter,
        flights=flights,
        tally=tally,
        retry=make_retry_policy(settings),
    )
    handlers = stack(middleware, forwarder)
    fleet = Fleet(pool, upstreams.control, concurrency=settings.fleet_concurrency)
    updater = WeightUpdater(pool, fleet)
    watchers = make_watchers(settings, pool)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as running:
            running.callback(upstreams.close_idle)
            running.push_async_callback(aborter.aclose)
            await _start(middleware, handlers, running)
            for watch in watchers:
                await running.enter_async_context(_in_background(watch))
            running.push_async_callback(updater.aclose)
            yield

    app = RouterApp(title="Espalier", version=__version__, lifespan=lifespan)
    tell_errors(app)
    app.idle_connections = DelayQueue(KEEP_ALIVE_S, HttpToolsProtocol.timeout_keep_alive_handler)
    ledger = _make_ledger(app, settings)
    on_end = _both(ledger.add, log_call) if settings.access_log else ledger.add
    request_ids = RequestIds(settings.request_id_headers)
    admission = make_admission(settings, tally)
    app.data_plane = DataPlane(
        handlers[0],
        max_body_bytes=settings.max_payload_size,
        request_ids=request_ids,
        on_end=on_end,
        admission=admission,
        needs_tasks=bool(middleware),
    )
    app.own_endpoints = OwnEndpoints(super(RouterApp, app).__call__, app.data_plane, on_end=on_end)
    app.metrics = registry_of(RouterCollector(pool, app.data_plane, middleware, ledger, tally))

    def plane_of(handler: Handler) -> DataPlane:
        """Return a data plane behind an endpoint of ours, which counts its calls itself."""
        return DataPlane(
            handler, max_body_bytes=settings.max_payload_size, request_ids=request_ids, on_end=_nothing
        )

    controls = [
        # Before the workers, whose paths begin the same.
        engine_routes(pool, fleet, plane_of(EngineGate(pool, fleet, upstreams.control))),
        worker_routes(pool),
        fleet_routes(pool, fleet),
        abort_routes(fleet, flights, aborter, admission),
        weight_routes(pool, fleet, updater),
    ]
    _add_routes(app, settings, controls, _other_routes(app, pool, fleet, middleware, plane_of))
    return app


def _other_routes(
    app: RouterApp,
    pool: WorkerPool,
    fleet: Fleet,
    middleware: Sequence[Middleware],
    plane_of: Callable[[Handler], DataPlane],
) -> list[APIRouter]:
    """Return the endpoints that change nothing, for which a data key is enough."""
    aggregates = Aggregates(pool, fleet)
    return [
        aggregate_routes(pool, aggregates, plane_of(aggregates.from_one)),
        status_routes(pool, app.metrics),
        *(routes for layer in middleware if (routes := layer.routes()) is not None),
    ]


def _add_routes(
    app: RouterApp, settings: RouterSettings, controls: list[APIRouter], others: list[APIRouter]
) -> None:
    routers = [*controls, *others]
    app.own_paths = OwnPaths([*app.routes, *(route for router in routers for route in router.routes)])
    app.gate = make_gate(
        settings,
        own_paths=app.own_paths,
        controls=OwnPaths(route for router in controls for route in router.routes),
    )
    app.own_endpoints.gate = app.gate
    for router in routers:
        app.include_router(router)


def _make_ledger(app: RouterApp, settings: RouterSettings) -> Ledger:
    return Ledger(
        lambda path: app.own_paths.label_of(path) or path_label(path),
        bounds_s=duration_bounds_s(settings.prometheus_duration_buckets),
    )


def _both(first: OnEnd, second: OnEnd) -> OnEnd:
    def tell(record: CallRecord) -> None:
        first(record)
        second(record)

    return tell


def _nothing(record: CallRecord) -> None:
    del record


async def _start(
    middleware: Sequence[Middleware], handlers: Sequence[Handler], running: contextlib.AsyncExitStack
) -> None:
    """Start the middleware from the innermost out; each is closed with `running`."""
    for layer, forward in reversed(list(zip(middleware, handlers[1:], strict=True))):
        await layer.start(forward)
        running.push_async_callback(layer.aclose)


@contextlib.asynccontextmanager
async def _in_background(watch: Watcher) -> AsyncIterator[None]:
    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])
