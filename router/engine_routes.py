"""Endpoints that reach into workers: one named in the path, or SMG's `/v1/rl`, which asks all that fit."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from starlette.types import ASGIApp

from ..calls import JsonObject, Reply
from .addressing import ENGINE, addressed, selected_workers
from .answers import status_of, told_as_smg
from .delegated import Delegated
from .fleet import Fleet
from .fleet_routes import FLEET_RESPONSES, call_of
from .fleet_schema import ErrorBody
from .responses import as_response
from .workers import Worker, WorkerPool

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
"""The methods that are passed on."""

DOCUMENTED_METHODS: Final = frozenset({"GET", "POST"})
"""The methods that SGLang's own endpoints take, but for a few."""

ONE_WORKER: Final = "/workers/{id_or_url:path}/engine/{path:path}"

ONE_WORKER_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "What the worker answered, whatever its status"},
    404: {"model": ErrorBody, "description": "There is no such worker"},
    502: {"model": ErrorBody, "description": "The worker gave no answer"},
    504: {"model": ErrorBody, "description": "The worker gave no answer in time"},
}


def engine_routes(pool: WorkerPool, fleet: Fleet, gate: ASGIApp) -> APIRouter:
    """Return the endpoints; `gate` answers those for one worker."""
    router = APIRouter(tags=["engine"])

    async def ask_one(id_or_url: str, path: str) -> Response:  # noqa: ARG001  the gate reads the raw path
        """Pass the call on to one worker as it is, and its reply back, streams included."""
        return Delegated(gate)

    async def ask_all(
        path: str,  # noqa: ARG001  what is sent on is the raw path
        request: Request,
        selector: Annotated[
            list[str] | None, Query(description="KEY=VALUE[,…] of engine, id, url, worker_type")
        ] = None,
    ) -> Response:
        """Pass the call on to every worker that fits, and tell how each one answered."""
        workers = selected_workers(pool, selector or [])
        call = call_of(request, await request.body(), below="/v1/rl/engine", without=("selector",))
        answers = await fleet.broadcast(addressed(call, workers, pool))
        body = told_as_smg(answers)
        return as_response(Reply.of_json(body, status_of(body["succeeded"], body["total"])))

    for method in METHODS:
        is_documented = method in DOCUMENTED_METHODS
        for path, name in ((ONE_WORKER, "worker_engine"), (f"/v1/rl{ONE_WORKER}", "rl_worker_engine")):
            router.add_api_route(
                path,
                ask_one,
                methods=[method],
                operation_id=f"{name}_by_{method.lower()}",
                responses=ONE_WORKER_RESPONSES,
                include_in_schema=is_documented,
            )
        router.add_api_route(
            "/v1/rl/engine/{path:path}",
            ask_all,
            methods=[method],
            operation_id=f"rl_engine_by_{method.lower()}",
            responses=dict(FLEET_RESPONSES),
            include_in_schema=is_documented,
        )

    @router.get("/v1/rl/workers", operation_id="rl_workers")
    async def list_workers() -> dict[str, Any]:
        """List the workers, as SMG does."""
        workers = [_described(worker) for worker in pool]
        return {"workers": workers, "total": len(workers)}

    @router.get(
        "/v1/rl/workers/{id_or_url:path}", operation_id="rl_worker", responses={404: {"model": ErrorBody}}
    )
    async def show_worker(id_or_url: str) -> dict[str, Any]:
        """Show one worker, by its id or percent-encoded URL."""
        return _described(pool.find(id_or_url))

    return router


def _described(worker: Worker) -> JsonObject:
    return {
        "id": worker.id,
        "url": worker.url,
        "engine": ENGINE,
        "worker_type": worker.worker_type,
        "is_healthy": worker.is_routable,
        "status": worker.health.state,
        "load": worker.in_flight,
        "weight_version": worker.weight_version,
    }
