"""Both worker APIs: `/workers` as SGLang's router has it, and the older one that slime and verl call.

A worker that was added is in the next `GET /workers`, and its URL comes back exactly as it was given: that is
what frameworks wait for.
"""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ..errors import BadRequest
from .workers import Worker, WorkerPool


class NewWorker(BaseModel):
    """Body of `POST /workers`. SGLang's router knows more fields; they are accepted and not used."""

    url: Annotated[str, Field(examples=["http://10.0.0.1:30001"])]
    worker_type: Literal["regular"] = "regular"


def worker_routes(pool: WorkerPool) -> APIRouter:
    """Return the endpoints that list, add and remove workers."""
    router = APIRouter(tags=["workers"])

    @router.post("/workers", status_code=202)
    async def add(worker: NewWorker, response: Response) -> dict[str, Any]:
        """Add a worker. It takes calls from now on."""
        added, is_new = pool.add(worker.url, worker.worker_type)
        response.headers["location"] = f"/workers/{added.id}"
        return {
            "status": "accepted",
            "worker_id": added.id,
            "url": added.url,
            "location": f"/workers/{added.id}",
            "message": "Worker added" if is_new else "Worker was known already",
        }

    @router.get("/workers")
    async def list_all() -> dict[str, Any]:
        """List the workers and their state."""
        workers = [_described(worker) for worker in pool]
        return {
            "workers": workers,
            "total": len(workers),
            "stats": {"prefill_count": 0, "decode_count": 0, "regular_count": len(workers)},
        }

    @router.get("/workers/{id_or_url:path}")
    async def show(id_or_url: str) -> dict[str, Any]:
        """Show one worker, by its id or percent-encoded URL."""
        return _described(pool.find(id_or_url))

    @router.delete("/workers/{id_or_url:path}", status_code=202)
    async def remove(id_or_url: str) -> dict[str, Any]:
        """Remove a worker, by its id or percent-encoded URL; calls it holds go on to their end."""
        removed = pool.remove(id_or_url)
        return {"status": "accepted", "worker_id": removed.id, "message": "Worker removed"}

    @router.post("/add_worker")
    async def add_legacy(request: Request) -> JSONResponse:
        """Add a worker: `?url=` or JSON `{"url"}` (or `worker_url`)."""
        pool.add(await _named_url(request))
        return JSONResponse(
            {"status": "success", "worker_urls": {worker.url: worker.in_flight for worker in pool}}
        )

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
    return {
        "id": worker.id,
        "url": worker.url,
        "worker_type": worker.worker_type,
        "is_healthy": worker.health.is_routable,
        "status": worker.health.state,
        "load": worker.in_flight,
        "connection_mode": "http",
    }


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
