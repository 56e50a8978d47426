"""Puts the router together: `create_app(settings)` is a FastAPI application with the data plane in front."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.routing import BaseRoute

from ..calls import Call, Handler, Middleware, Reply, stack
from ..errors import BadRequest, ConfigError, HttpError
from ..middleware import middlewares
from ..registry import call_with_options
from ..version import __version__
from .data_plane import DataPlane, Receive, Scope, Send
from .fleet import FLEET_PATHS, Fleet
from .forwarder import RETRY_AFTER_S, Forwarder
from .headers import end_to_end_request
from .metrics import RouterCollector, registry_of
from .policies import policies
from .prober import Prober
from .settings import RouterSettings
from .upstream import Upstream
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
        elif scope["path"] in self.own_paths:
            await super().__call__(scope, self.data_plane.bounded(receive), send)
        else:
            await self.data_plane(scope, receive, send)


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
    policy = policies.resolve(settings.policy)()
    middleware = _make_middleware(settings)
    pool = WorkerPool(failure_threshold=settings.health_failure_threshold)
    for url in settings.worker_urls:
        try:
            pool.add(url)
        except BadRequest as error:
            raise ConfigError(f"--worker-urls: {error.message}") from None
    forwarder = Forwarder(pool, policy, _upstream(settings))
    handlers = stack(middleware, forwarder)
    data_plane = DataPlane(handlers[0], max_body_bytes=settings.max_payload_size)
    prober = Prober(
        pool,
        interval_s=settings.health_check_interval_secs,
        timeout_s=settings.health_check_timeout_secs,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with _running(middleware, handlers[1:], prober):
            yield

    app = RouterApp(title="Espalier", version=__version__, lifespan=lifespan)
    app.add_exception_handler(HttpError, _tell)
    metrics = registry_of(RouterCollector(pool, forwarder, data_plane, middleware))
    routers = [
        worker_routes(pool),
        _fleet_routes(Fleet(pool, _upstream(settings))),
        _status_routes(pool, metrics),
        *(routes for layer in middleware if (routes := layer.routes()) is not None),
    ]
    app.data_plane = data_plane
    app.own_paths = OwnPaths([*app.routes, *(route for router in routers for route in router.routes)])
    for router in routers:
        app.include_router(router)
    return app


@contextlib.asynccontextmanager
async def _running(
    middleware: Sequence[Middleware], forwards: Sequence[Handler], prober: Prober
) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as running:
        for layer, forward in reversed(list(zip(middleware, forwards, strict=True))):
            await layer.start(forward)
            running.push_async_callback(layer.aclose)
        probing = asyncio.create_task(prober.run())
        try:
            yield
        finally:
            probing.cancel()
            await asyncio.wait([probing])


def _upstream(settings: RouterSettings) -> Upstream:
    return Upstream(
        connect_timeout_s=settings.connect_timeout_secs, request_timeout_s=settings.request_timeout_secs
    )


def _make_middleware(settings: RouterSettings) -> list[Middleware]:
    names = [name for name in settings.middleware if name != "none"]
    options: dict[str, dict[str, object]] = {name: {} for name in names}
    if "radix_tree" in options and settings.tokenizer_path is not None:
        options["radix_tree"]["tokenizer_path"] = settings.tokenizer_path
    for text in settings.middleware_arg:
        key, equals, value = text.partition("=")
        name, dot, option = key.rpartition(".")
        if not equals or not dot:
            raise ConfigError(f"--middleware-arg {text}: expected NAME.KEY=VALUE")
        if name not in options:
            raise ConfigError(
                f"--middleware-arg {text}: {name!r} is not in use; --middleware {name} turns it on"
            )
        options[name][option] = _option_value(value)
    return [
        call_with_options(middlewares.resolve(name), options[name], f"middleware {name!r}") for name in names
    ]


def _option_value(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


async def _tell(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return _as_response(Reply.of_error(error))


def _as_response(reply: Reply) -> Response:
    assert isinstance(reply.body, bytes)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reply.headers}
    return Response(reply.body, reply.status, headers)


def _fleet_routes(fleet: Fleet) -> APIRouter:
    router = APIRouter(tags=["fleet"])

    async def broadcast(request: Request) -> Response:
        """Send the call to every worker; tell how each one answered."""
        path = request.url.path
        call = Call(
            method=request.method,
            path=path,
            target=path.encode() + (b"?" + request.url.query.encode() if request.url.query else b""),
            headers=end_to_end_request(request.headers.raw),
            body=await request.body(),
            request_id=request.headers.get("x-request-id", ""),
        )
        return _as_response(await fleet.broadcast(call))

    for path in sorted(FLEET_PATHS):
        router.add_api_route(path, broadcast, methods=["POST"], name=path.strip("/"))
    router.add_api_route("/flush_cache", broadcast, methods=["GET"], name="flush_cache_get")
    return router


def _status_routes(pool: WorkerPool, metrics: CollectorRegistry) -> APIRouter:
    router = APIRouter(tags=["status"])

    @router.get("/health")
    async def health() -> Response:
        """Tell that the router lives, whatever its workers do."""
        return Response("OK", media_type="text/plain")

    @router.get("/liveness")
    async def liveness() -> Response:
        """Tell that the router lives."""
        return Response("OK", media_type="text/plain")

    @router.get("/readiness")
    async def readiness() -> Response:
        """Tell whether a call would find a worker."""
        routable, total = len(pool.routable), len(pool)
        if routable:
            return _as_response(
                Reply.of_json({"status": "ready", "healthy_workers": routable, "total_workers": total})
            )
        reply = Reply.of_json(
            {"status": "not ready", "reason": "no routable workers", "total_workers": total}, 503
        )
        reply.headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        return _as_response(reply)

    @router.get("/metrics")
    async def show_metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(generate_latest(metrics), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
