"""Both worker APIs: `/workers` as SGLang's router has it, and the older one that slime and verl call.

A worker that was added is in the next `GET /workers`, and its URL comes back exactly as it was given: that is
what frameworks wait for. One that was removed is in no list from then on, while the calls that it holds go on
to their end; `GET /workers?draining=true` shows those.
"""

import logging
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ..errors import BadRequest, NotFound
from .health import State
from .workers import Worker, WorkerPool

_log = logging.getLogger("espalier.router")


class NewWorker(BaseModel):
    """Body of `POST /workers`. SGLang's router knows more fields; the reply says which were not used."""

    model_config = ConfigDict(extra="allow")

    url: Annotated[str, Field(examples=["http://10.0.0.1:30001"])]
    worker_type: Literal["regular"] = "regular"
    api_key: Annotated[
        str | None, Field(pattern=r"^[!-~]*$", description="Bearer key for probes; calls carry their own.")
    ] = None


def worker_routes(pool: WorkerPool) -> APIRouter:
    """Return the endpoints that list, add and remove workers."""
    router = APIRouter(tags=["workers"])

    @router.post("/workers", status_code=202)
    async def add(worker: NewWorker, response: Response) -> dict[str, Any]:
        """Add a worker; it is listed from now on. One that was known already stays as it is."""
        added, is_new = pool.add(worker.url, worker.worker_type, api_key=worker.api_key)
        unused = sorted(name for name, value in (worker.model_extra or {}).items() if value is not None)
        if unused:
            _log.info("event=worker_fields_not_used worker=%s fields=%r", added.url, unused)
        response.headers["location"] = f"/workers/{added.id}"
        return {
            "status": "accepted",
            "worker_id": added.id,
            "url": added.url,
            "location": f"/workers/{added.id}",
            "message": "Worker added" if is_new else "Worker was known already",
            "fields_not_used": unused,
        }

    @router.get("/workers")
    async def list_all(*, draining: bool = False) -> dict[str, Any]:
        """List the workers and their state; with `draining`, those that were removed and still hold calls."""
        workers = [_described(worker) for worker in (pool.draining if draining else pool)]
        return {
            "workers": workers,
            "total": len(workers),
            "stats": {"prefill_count": 0, "decode_count": 0, "regular_count": len(workers)},
        }

    @router.get("/workers/{id_or_url:path}")
    async def show(id_or_url: str, request: Request) -> dict[str, Any]:
        """Show one worker, by its id or percent-encoded URL."""
        return _described(_find(pool, id_or_url, request))

    @router.delete("/workers/{id_or_url:path}", status_code=202)
    async def remove(id_or_url: str, request: Request) -> dict[str, Any]:
        """Remove a worker, by its id or percent-encoded URL; calls it holds go on to their end."""
        removed = pool.remove(_find(pool, id_or_url, request).id)
        return {"status": "accepted", "worker_id": removed.id, "message": "Worker removed"}

    @router.post("/add_worker")
    async def add_legacy(request: Request) -> JSONResponse:
        """Add a worker: `?url=` or JSON `{"url"}` (or `worker_url`)."""
        pool.add(await _named_url(request))
        return JSONResponse(
            {"status": "success", "worker_urls": {worker.url: worker.in_flight for worker in pool}}
        )

    @router.head("/add_worker", include_in_schema=False)
    async def is_there() -> Response:
        """Tell a client that looks for the older API that it is there. Adds nothing."""
        return Response()

    @router.post("/remove_worker")
    async def remove_legacy(request: Request) -> JSONResponse:
        """Remove a worker: `?url=` or JSON `{"url"}` (or `worker_url`)."""
        pool.remove(await _named_url(request))
        return JSONResponse(
            {"status": "success", "worker_urls": {worker.url: worker.in_flight for worker in pool}}
        )

    @router.get("/list_workers")
    async def list_legacy() -> dict[str, list[str]]:
        """List the workers' URLs."""
        return {"urls": [worker.url for worker in pool]}

    return router


def _described(worker: Worker) -> dict[str, Any]:
    health, probe = worker.health, worker.last_probe
    return {
        "id": worker.id,
        "url": worker.url,
        "worker_type": worker.worker_type,
        "is_healthy": health.contact is not State.DEAD,
        "is_routable": worker.is_routable,
        "status": health.state,
        "weight_version": worker.weight_version,
        "load": worker.in_flight,
        "last_probe": probe
        and {
            "outcome": probe.outcome,
            "at": datetime.fromtimestamp(probe.ended_at, UTC).isoformat(timespec="milliseconds"),
            "latency_ms": round(probe.took_s * 1000, 1),
            "detail": probe.detail,
        },
        "connection_mode": "http",
    }


def _find(pool: WorkerPool, id_or_url: str, request: Request) -> Worker:
    """Return the worker that a path names; a URL that itself has percent signs may have come as it is.

    Raises: NotFound
    """
    try:
        return pool.find(id_or_url)
    except NotFound:
        raw: bytes = request.scope.get("raw_path") or b""
        return pool.find(raw.decode("latin-1").removeprefix("/workers/"))


async def _named_url(request: Request) -> str:
    named: object = request.query_params.get("url") or request.query_params.get("worker_url")
    body = await request.body()
    if named is None and body:
        try:
            decoded = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            decoded = None
        if isinstance(decoded, dict):
            named = decoded.get("url") or decoded.get("worker_url")
    if not isinstance(named, str):
        raise BadRequest('Which worker? Give ?url=http://host:port or the JSON body {"url": …}')
    return named
