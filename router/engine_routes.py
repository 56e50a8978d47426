"""Endpoints that reach into workers: one named in the path, or SMG's `/v1/rl`, which asks all that fit."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from starlette.types import ASGIApp

from ..calls import JsonObject, Reply
from .addressing import ENGINE, addressed, selected_workers
from .answers import status_of, told_as_smg
from .delegated import Delegated
from .fleet import Fleet
from .fleet_routes import fleet_call
from .fleet_schema import FLEET_MODELS, failures
from .responses import as_response
from .workers import Worker, WorkerPool

DOCUMENTED: Final = ("GET", "POST")
"""The methods that SGLang's own endpoints take, but for a few."""

UNDOCUMENTED: Final = ("PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
"""The other methods that are passed on."""

ONE_WORKER: Final = "/workers/{id_or_url:path}/engine/{path:path}"

ONE_WORKER_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "What the worker answered, whatever its status"},
    **failures(
        _404="There is no such worker",
        _502="The worker gave no answer",
        _504="The worker gave no answer in time",
    ),
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
        call = await fleet_call(request, below="/v1/rl/engine", without=("selector",))
        answers = await fleet.tell(addressed(call, workers, pool))
        body = told_as_smg(answers)
        return as_response(Reply.of_json(body, status_of(body["succeeded"], body["total"])))

    all_workers: dict[int | str, dict[str, Any]] = {
        status: {"model": model, "description": told} for status, (model, told) in FLEET_MODELS.items()
    }
    for path, name, endpoint, responses in (
        (ONE_WORKER, "worker_engine", ask_one, ONE_WORKER_RESPONSES),
        (f"/v1/rl{ONE_WORKER}", "rl_worker_engine", ask_one, ONE_WORKER_RESPONSES),
        ("/v1/rl/engine/{path:path}", "rl_engine", ask_all, all_workers),
    ):
        for method in DOCUMENTED:
            operation_id = f"{name}_by_{method.lower()}"
            router.add_api_route(
                path, endpoint, methods=[method], operation_id=operation_id, responses=responses
            )
        router.add_api_route(path, endpoint, methods=list(UNDOCUMENTED), include_in_schema=False)

    @router.get("/v1/rl/workers", operation_id="rl_workers")
    async def list_workers() -> dict[str, Any]:
        """List the workers, as SMG does."""
        workers = [_described(worker) for worker in pool]
        return {"workers": workers, "total": len(workers)}

    @router.get(
        "/v1/rl/workers/{id_or_url:path}",
        operation_id="rl_worker",
        responses=failures(_404="There is no such worker"),
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
