"""Calls that are meant for every worker: abort, pause, weights, caches.

Balanced like other calls they would reach one worker only; here they reach all, and the reply tells how each
one answered: 200 when all succeeded, 207 when some did, 502 when none.
"""

import asyncio
import time
from typing import Any, Final

import msgspec

from ..calls import Call, JsonObject, Reply
from ..errors import HttpError, NoWorkerAvailable
from .upstream import Upstream
from .workers import Worker, WorkerPool

FLEET_PATHS: Final = frozenset(
    {
        "/pause_generation",
        "/continue_generation",
        "/flush_cache",
        "/update_weights_from_disk",
        "/update_weight_version",
        "/release_memory_occupation",
        "/resume_memory_occupation",
    }
)
"""SGLang's control endpoints that change a worker for all of its callers."""

MAX_REPLY_BYTES: Final = 1 << 20
"""A worker's answer to a control call is short; a longer one is not kept."""


class Fleet:
    """Sends control calls to all workers at once, over connections of its own."""

    def __init__(self, pool: WorkerPool, upstream: Upstream) -> None:
        self._pool = pool
        self._upstream = upstream

    async def broadcast(self, call: Call) -> Reply:
        """Return how every worker answered `call`, dead ones included.

        Raises: NoWorkerAvailable where there are none at all.
        """
        workers = list(self._pool)
        if not workers:
            raise NoWorkerAvailable("There are no workers. Add one: POST /add_worker?url=http://host:port")
        results = await asyncio.gather(*(self._ask(worker, call) for worker in workers))
        succeeded = sum(result["status"] < 300 for result in results)
        status = 200 if succeeded == len(results) else 207 if succeeded else 502
        return Reply.of_json(
            {
                "total": len(results),
                "succeeded": succeeded,
                "results": {worker.id: result for worker, result in zip(workers, results, strict=True)},
            },
            status,
        )

    async def _ask(self, worker: Worker, call: Call) -> JsonObject:
        began_s = time.monotonic()
        body: Any
        try:
            reply = await self._upstream.send(worker.origin, call)
            status, body = reply.status, _decode(await reply.read(MAX_REPLY_BYTES))
        except HttpError as error:
            status, body = error.status, {"error": error.message}
        return {
            "url": worker.url,
            "status": status,
            "latency_ms": round((time.monotonic() - began_s) * 1000, 1),
            "body": body,
        }


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body) if body else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")
