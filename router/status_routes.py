"""How the router tells that it lives, and how it fares."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from ..calls import Reply
from .forwarder import WORKER_RETRY_AFTER_S
from .responses import as_response
from .workers import WorkerPool


def status_routes(pool: WorkerPool, metrics: CollectorRegistry) -> APIRouter:
    """Return `/health`, `/liveness`, `/readiness` and `/metrics`."""
    router = APIRouter(tags=["status"])

    async def live() -> Response:
        """Tell that the router lives, whatever its workers do."""
        return Response("OK", media_type="text/plain")

    async def ready() -> Response:
        """Tell whether a call would find a worker."""
        routable, total = len(pool.routable), len(pool)
        if routable:
            told = {"status": "ready", "healthy_workers": routable, "total_workers": total}
            return as_response(Reply.of_json(told))
        told = {"status": "not ready", "reason": "no routable workers", "total_workers": total}
        reply = Reply.of_json(told, 503)
        reply.headers.append((b"retry-after", str(WORKER_RETRY_AFTER_S).encode()))
        return as_response(reply)

    async def show_metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(generate_latest(metrics), headers={"content-type": CONTENT_TYPE_LATEST})

    endpoints = {"/health": live, "/liveness": live, "/readiness": ready, "/metrics": show_metrics}
    for path, endpoint in endpoints.items():
        router.add_api_route(path, endpoint, methods=["GET"], operation_id=path.strip("/"))
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    return router
