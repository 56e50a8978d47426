"""The endpoints of the fleet: SGLang's control paths, each one answered by every worker."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from ..calls import Call, Reply
from .addressing import addressed, chosen_workers, without_parameters
from .answers import status_of, told
from .control_calls import CONTROL_CALLS
from .fleet import Fleet
from .fleet_schema import ErrorBody, FleetAnswer, WorkerSelector
from .headers import end_to_end_request
from .responses import as_response
from .workers import WorkerPool

FLEET_RESPONSES: Final[Mapping[int | str, dict[str, Any]]] = {
    200: {"model": FleetAnswer, "description": "All workers succeeded"},
    207: {"model": FleetAnswer, "description": "Some workers succeeded"},
    400: {"model": ErrorBody, "description": "The body of a single worker is malformed"},
    404: {"model": ErrorBody, "description": "There is no such worker"},
    502: {"model": FleetAnswer, "description": "No worker succeeded"},
    503: {"model": ErrorBody, "description": "There are no workers"},
}


def fleet_routes(pool: WorkerPool, fleet: Fleet) -> APIRouter:
    """Return one endpoint for each of `CONTROL_CALLS`."""
    router = APIRouter(tags=["fleet"])

    async def broadcast(request: Request, worker: WorkerSelector = None) -> Response:
        workers = chosen_workers(pool, worker or [])
        call = call_of(request, await request.body(), without=("worker",))
        answers = await fleet.broadcast(addressed(call, workers, pool))
        body = told(answers)
        return as_response(Reply.of_json(body, status_of(body["succeeded"], body["total"])))

    for control in CONTROL_CALLS.values():
        for method in control.methods:
            router.add_api_route(
                control.path,
                broadcast,
                methods=[method],
                operation_id=f"{control.path.strip('/')}_by_{method.lower()}",
                summary=control.does,
                description=f"{control.does}, on every worker, and tell how each one answered.",
                responses=dict(FLEET_RESPONSES),
            )
    return router


def call_of(request: Request, body: bytes, *, below: str = "", without: tuple[str, ...] = ()) -> Call:
    """Return what workers are sent: the request, its path from `below` on, its query `without` our own."""
    path: str = request.scope["path"]
    raw_path: bytes = request.scope.get("raw_path") or path.encode()
    query = without_parameters(request.scope["query_string"], *without)
    return Call(
        method=request.method,
        path=path.removeprefix(below),
        target=raw_path.removeprefix(below.encode()) + (b"?" + query if query else b""),
        headers=end_to_end_request(request.headers.raw),
        body=body,
        request_id=request.headers.get("x-request-id", ""),
    )
