"""The endpoints of the fleet: SGLang's control paths, each one answered by every worker."""

from fastapi import APIRouter, Request, Response

from ..calls import Call
from .addressing import chosen_workers, without_parameters
from .control_calls import CONTROL_CALLS
from .fleet import Fleet
from .fleet_schema import FLEET_RESPONSES, WORKER_SELECTION
from .headers import end_to_end_request
from .responses import as_response
from .workers import WorkerPool


def fleet_routes(pool: WorkerPool, fleet: Fleet) -> APIRouter:
    """Return one endpoint for each of `CONTROL_CALLS`."""
    router = APIRouter(tags=["fleet"])

    async def broadcast(request: Request) -> Response:
        workers = chosen_workers(pool, request.query_params.getlist("worker"))
        call = await fleet_call(request, without=("worker",))
        return as_response(await fleet.broadcast(call, workers))

    for control in CONTROL_CALLS.values():
        for method in control.methods:
            router.add_api_route(
                control.path,
                broadcast,
                methods=[method],
                operation_id=f"{control.path.strip('/')}_by_{method.lower()}",
                summary=control.does,
                description=f"{control.does}, on every worker, and tell how each one answered.",
                responses=FLEET_RESPONSES,
                openapi_extra=WORKER_SELECTION,
            )
    return router


async def fleet_call(request: Request, *, below: str = "", without: tuple[str, ...] = ()) -> Call:
    """Return what workers are sent: the request, its path from `below` on, its query `without` our own."""
    path: str = request.scope["path"]
    raw_path: bytes = request.scope.get("raw_path") or path.encode()
    query = without_parameters(request.scope["query_string"], *without)
    return Call(
        method=request.method,
        path=path.removeprefix(below),
        target=raw_path.removeprefix(below.encode()) + (b"?" + query if query else b""),
        headers=end_to_end_request(request.headers.raw),
        body=await request.body(),
        request_id=request.headers.get("x-request-id", ""),
    )
