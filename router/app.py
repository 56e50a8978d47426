"""Puts the router together: `create_app(settings)` is a FastAPI application with the data plane in front."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute

from ..calls import stack
from ..errors import BadRequest, ConfigError
from ..version import __version__
from .abort_routes import abort_routes
from .aborts import ABORT_TIMEOUT_S, Aborter
from .access_log import log_call
from .admission import Admission
from .auth import Gate, Keyring, WorkerCredentials, read_keys
from .data_plane import DataPlane, Receive, Scope, Send
from .fleet import Fleet
from .fleet_routes import fleet_routes
from .flights import Flights
from .forwarder import Forwarder
from .ledger import CallRecord, Ledger, OnEnd, duration_bounds_s, path_label
from .metrics import RouterCollector, registry_of
from .own_endpoints import OwnEndpoints
from .plugins import make_middleware, make_policy
from .prober import Prober, revive_unseen
from .request_id import RequestIds
from .responses import tell_errors
from .retries import Backoff, RetryBudget, RetryPolicy
from .settings import RouterSettings
from .status_routes import status_routes
from .tally import Tally
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
    own_endpoints: OwnEndpoints
    metrics: CollectorRegistry
    gate: Gate | None = None

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

    def stop(self) -> None:
        """Tell from now on that the router is not ready; may be called by a signal handler."""
        self.own_endpoints.is_stopping = True

    def running(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Run what works in the background while the block lasts; the lifespan does the same."""
        return self.router.lifespan_context(self)


class OwnPaths:
    """The paths that an application's routes answer: whole ones, and beginnings of those with parameters."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        paths = [str(getattr(route, "path", "")) for route in routes]
        self._whole = frozenset(path for path in paths if "{" not in path)
        self._templates = {path.partition("{")[0]: path for path in paths if "{" in path}
        self._beginnings = tuple(self._templates)

    def __contains__(self, path: str) -> bool:
        """Tell whether the application answers `path`."""
        return path in self._whole or path.startswith(self._beginnings)

    def label_of(self, path: str) -> str | None:
        """Return `path` as its route is written, with the names of parameters; None where none is ours."""
        if path in self._whole:
            return path
        return next((self._templates[start] for start in self._beginnings if path.startswith(start)), None)


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
    pool = _make_pool(settings)
    calls, control = _make_upstream(settings), _make_upstream(settings)
    tally, flights = Tally(), Flights()
    aborter = Aborter(_make_abort_upstream(settings), tally)
    retry = _make_retry_policy(settings)
    forwarder = Forwarder(pool, policy, calls, aborter, flights=flights, tally=tally, retry=retry)
    handlers = stack(middleware, forwarder)
    watchers = _make_watchers(settings, pool)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as running:
            running.callback(calls.close_idle)
            running.callback(control.close_idle)
            running.push_async_callback(aborter.aclose)
            for layer, forward in reversed(list(zip(middleware, handlers[1:], strict=True))):
                await layer.start(forward)
                running.push_async_callback(layer.aclose)
            for watch in watchers:
                await running.enter_async_context(_in_background(watch))
            yield

    app = RouterApp(title="Espalier", version=__version__, lifespan=lifespan)
    tell_errors(app)
    ledger = _make_ledger(app, settings)
    on_end = _both(ledger.add, log_call) if settings.access_log else ledger.add
    app.data_plane = DataPlane(
        handlers[0],
        max_body_bytes=settings.max_payload_size,
        request_ids=RequestIds(settings.request_id_headers),
        on_end=on_end,
        admission=_make_admission(settings, tally),
    )
    app.own_endpoints = OwnEndpoints(super(RouterApp, app).__call__, app.data_plane, on_end=on_end)
    app.metrics = registry_of(RouterCollector(pool, app.data_plane, middleware, ledger, tally))
    fleet = Fleet(pool, control)
    controls = [worker_routes(pool), fleet_routes(fleet), abort_routes(fleet, flights, aborter)]
    app.gate = _make_gate(app, settings, OwnPaths(route for router in controls for route in router.routes))
    app.own_endpoints.gate = app.gate
    routers = [
        *controls,
        status_routes(pool, app.metrics),
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


def _make_gate(app: RouterApp, settings: RouterSettings, controls: OwnPaths) -> Gate | None:
    keys = Keyring(read_keys(settings.api_key, settings.api_key_file, "--api-key"))
    admin_keys = Keyring(read_keys(settings.admin_api_key, settings.admin_api_key_file, "--admin-api-key"))
    if not keys and not admin_keys:
        return None
    return Gate(
        keys,
        admin_keys,
        is_own=lambda path: path in app.own_paths,
        is_control=lambda path: path in controls,
        protect_metrics=settings.protect_metrics,
    )


def _make_credentials(settings: RouterSettings) -> WorkerCredentials | None:
    """Return what workers get for credentials; None where the client's own go on, as all its headers do."""
    (key,) = (
        read_keys([settings.worker_api_key], None, "--worker-api-key") if settings.worker_api_key else (None,)
    )
    has_gate = (
        settings.api_key or settings.api_key_file or settings.admin_api_key or settings.admin_api_key_file
    )
    return WorkerCredentials(key) if key or has_gate else None


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
        credentials=_make_credentials(settings),
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
        connect_timeout_s=settings.connect_timeout_secs,
        request_timeout_s=settings.request_timeout_secs,
        first_byte_timeout_s=settings.first_byte_timeout_secs,
        between_bytes_timeout_s=settings.between_bytes_timeout_secs,
        credentials=_make_credentials(settings),
    )


def _make_abort_upstream(settings: RouterSettings) -> Upstream:
    return Upstream(
        connect_timeout_s=settings.connect_timeout_secs,
        request_timeout_s=ABORT_TIMEOUT_S,
        credentials=_make_credentials(settings),
    )


def _make_admission(settings: RouterSettings, tally: Tally) -> Admission | None:
    if settings.max_concurrent_requests == -1:
        return None
    return Admission(
        max_concurrent=settings.max_concurrent_requests,
        queue_size=settings.queue_size,
        queue_timeout_s=settings.queue_timeout_secs,
        tally=tally,
    )


def _make_retry_policy(settings: RouterSettings) -> RetryPolicy:
    backoff = Backoff(
        initial_s=settings.retry_initial_backoff_ms / 1000,
        multiplier=settings.retry_backoff_multiplier,
        max_s=settings.retry_max_backoff_ms / 1000,
        jitter=settings.retry_jitter_factor,
    )
    max_retries = 0 if settings.disable_retries else settings.retry_max_retries
    return RetryPolicy(max_retries=max_retries, backoff=backoff, budget=RetryBudget())


@contextlib.asynccontextmanager
async def _in_background(watch: Watcher) -> AsyncIterator[None]:
    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])
