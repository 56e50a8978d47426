"""Endpoints that tell about the workers as if they were one."""

from typing import Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp

from ..calls import Reply
from ..errors import BadRequest
from .addressing import chosen_workers
from .aggregates import Aggregates
from .answers import status_of
from .delegated import Delegated
from .fleet_routes import fleet_call
from .fleet_schema import WORKER_SELECTION, failures
from .headers import end_to_end_request
from .responses import as_response
from .workers import WorkerPool

FROM_ONE_WORKER: Final = (
    "/get_model_info",
    "/get_server_info",
    "/health_generate",
    "/model_info",
    "/server_info",
)
"""Paths that one worker answers for all."""


def aggregate_routes(pool: WorkerPool, aggregates: Aggregates, from_one: ASGIApp) -> APIRouter:
    """Return the endpoints; `from_one` answers those of `FROM_ONE_WORKER`."""
    router = APIRouter(tags=["workers"])

    @router.get("/get_loads", operation_id="get_loads")
    async def get_loads(request: Request) -> Response:
        """Tell how many tokens each worker holds or has waiting; -1 where it does not say."""
        told = await aggregates.tokens_held(end_to_end_request(request.headers.raw))
        return as_response(Reply.of_json({"workers": told}))

    @router.get(
        "/v1/loads",
        operation_id="v1_loads",
        responses=failures(_400="Not JSON", _404="There is no such worker", _503="There are no workers"),
        openapi_extra=WORKER_SELECTION,
    )
    async def all_loads(request: Request) -> Response:
        """Tell the loads of all workers, each with its worker's URL; 200, 207 or 502 as in fleet calls."""
        if request.query_params.get("format", "json") != "json":
            raise BadRequest("format: here loads come as JSON; GET /engine_metrics has Prometheus' text")
        workers = chosen_workers(pool, request.query_params.getlist("worker"))
        call = await fleet_call(request, without=("worker",))
        body = await aggregates.loads(call, workers)
        return as_response(Reply.of_json(body, status_of(body["succeeded"], body["total"])))

    @router.get("/engine_metrics", operation_id="engine_metrics")
    async def metrics(request: Request) -> Response:
        """Return the metrics of all workers in Prometheus' text format, labelled `worker_addr`."""
        text = await aggregates.metrics(end_to_end_request(request.headers.raw))
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    @router.get(
        "/v1/models",
        operation_id="v1_models",
        responses=failures(_502="No worker told", _503="No worker takes calls"),
    )
    async def models(request: Request) -> Response:
        """List the models of all workers that take calls, each name once."""
        data = await aggregates.models(end_to_end_request(request.headers.raw))
        return as_response(Reply.of_json({"object": "list", "data": data}))

    async def ask_one() -> Response:
        """Return what the first worker that takes calls says."""
        return Delegated(from_one)

    responses = failures(
        _502="No worker answered", _503="No worker takes calls", _504="No worker answered in time"
    )
    for path in FROM_ONE_WORKER:
        name = path.strip("/")
        router.add_api_route(path, ask_one, methods=["GET"], operation_id=name, responses=responses)
        router.add_api_route(path, ask_one, methods=["HEAD"], include_in_schema=False)
    return router
