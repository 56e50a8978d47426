"""`/fleet/weights`: which weights the workers serve, and new ones for all of them in one call."""

from fastapi import APIRouter, Request, Response

from ..calls import JsonObject, Reply
from .addressing import chosen_workers
from .answers import report_of
from .fleet import Fleet, own_call
from .fleet_schema import (
    WORKER_SELECTION,
    ErrorBody,
    FleetWeights,
    NewWeights,
    UpdateAnswer,
    failures,
)
from .headers import end_to_end_request
from .responses import as_response
from .weight_updater import WeightUpdater
from .weights import Mode, WeightUpdate
from .workers import Worker, WorkerPool


def weight_routes(pool: WorkerPool, fleet: Fleet, updater: WeightUpdater) -> APIRouter:
    """Return the endpoints of `/fleet/weights`."""
    router = APIRouter(tags=["fleet"])

    @router.put(
        "/fleet/weights",
        operation_id="update_fleet_weights",
        responses={
            200: {"model": UpdateAnswer, "description": "All workers serve the new weights"},
            207: {"model": UpdateAnswer, "description": "Some workers serve the new weights"},
            400: {"model": ErrorBody, "description": "The body is malformed"},
            404: {"model": ErrorBody, "description": "There is no such worker"},
            409: {"model": ErrorBody, "description": "Another update is under way"},
            502: {"model": UpdateAnswer, "description": "No worker serves the new weights"},
            503: {"model": ErrorBody, "description": "There are no workers"},
        },
        openapi_extra=WORKER_SELECTION,
    )
    async def update(request: Request, new: NewWeights) -> Response:
        """Pause every worker, load the weights, check that each reports the version, and continue.

        Workers that fail are continued too, but take no calls while their version is behind. A client that
        hangs up does not end the update.
        """
        workers = chosen_workers(pool, request.query_params.getlist("worker"))
        headers = end_to_end_request(request.headers.raw)
        finished = await updater.run(_update_of(new), workers, headers)
        return as_response(Reply.of_json(finished.told(), finished.status))

    @router.get(
        "/fleet/weights",
        operation_id="fleet_weights",
        responses={200: {"model": FleetWeights}, **failures(_404="There is no such worker")},
        openapi_extra=WORKER_SELECTION,
    )
    async def show(request: Request) -> Response:
        """Ask every worker what it serves now."""
        headers = end_to_end_request(request.headers.raw)
        selectors = request.query_params.getlist("worker")
        workers = chosen_workers(pool, selectors) if selectors else list(pool)

        async def ask(asked: Worker) -> JsonObject:
            answer = await fleet.ask(asked, own_call("GET", "/model_info", headers), quickly=True)
            report = report_of(answer)
            return {
                "url": asked.url,
                "weight_version": None if report is None else report.weight_version,
                "model_path": None if report is None else report.model_path,
                "is_routable": asked.is_routable,
                "error": answer.message if report is None else None,
            }

        served = await fleet.each(workers, ask)
        body = {
            "newest_weight_version": pool.newest_weight_version,
            "is_updating": updater.is_running,
            "last_update": None if updater.last is None else updater.last.told(),
            "workers": {one.id: told for one, told in zip(workers, served, strict=True)},
        }
        return as_response(Reply.of_json(body))

    return router


def _update_of(new: NewWeights) -> WeightUpdate:
    own = {"model_path", "weight_version", "mode", "flush_cache"}
    return WeightUpdate(
        model_path=new.model_path,
        weight_version=new.weight_version,
        mode=Mode(new.mode),
        flush_cache=new.flush_cache,
        options=new.model_dump(exclude=own, exclude_unset=True),
    )
