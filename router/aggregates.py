"""Asks all workers for what each of them tells of itself, and joins it: loads, metrics, models."""

import asyncio
from typing import Final

from ..calls import Call, Headers, JsonObject, Reply
from ..errors import NoWorkerAvailable, UpstreamError
from . import engine_metrics, loads
from .answers import Answer
from .fleet import Fleet, own_call
from .forwarder import WORKER_RETRY_AFTER_S
from .workers import Worker, WorkerPool

MAX_METRICS_BYTES: Final = 16 << 20
"""A worker's metrics take some 100 KB; more than this is not read."""


class Aggregates:
    """Answers for the fleet. `headers` are always those of the call that is answered."""

    def __init__(self, pool: WorkerPool, fleet: Fleet) -> None:
        self._pool = pool
        self._fleet = fleet

    async def tokens_held(self, headers: Headers) -> list[JsonObject]:
        """Return how many tokens each worker holds or has waiting, as SGLang's router tells it."""

        async def ask(worker: Worker) -> JsonObject:
            answer = await self._quickly(worker, own_call("GET", "/v1/loads?include=core", headers))
            if answer.status == 404:
                answer = await self._quickly(worker, own_call("GET", "/get_load", headers))
            held = loads.tokens_held(answer.body) if answer.succeeded else None
            return {"worker": worker.url, "load": loads.UNKNOWN_LOAD if held is None else held}

        return await self._fleet.each(list(self._pool), ask)

    async def loads(self, call: Call, workers: list[Worker]) -> JsonObject:
        """Return the loads of `workers`, which are asked by `call`, in the shape of `loads.joined`."""

        async def ask(worker: Worker) -> Answer:
            return await self._quickly(worker, call)

        return loads.joined(await self._fleet.each(workers, ask))

    async def metrics(self, headers: Headers) -> bytes:
        """Return all workers' metrics in Prometheus' text format, labelled by worker."""
        call = own_call("GET", "/metrics", headers)

        async def ask(worker: Worker) -> engine_metrics.Export:
            answer = await self._fleet.ask(worker, call, quickly=True, max_bytes=MAX_METRICS_BYTES)
            text = answer.body if answer.succeeded and isinstance(answer.body, str) else None
            problem = "" if text is not None else f"no metrics: {answer.message}"
            return engine_metrics.Export(url=worker.url, text=text, problem=problem)

        exports = await self._fleet.each(list(self._pool), ask)
        # Parsing takes some 20 ms a worker: in a thread, calls go on meanwhile.
        return await asyncio.to_thread(engine_metrics.joined, exports)

    async def models(self, headers: Headers) -> list[object]:
        """Return the models of all workers that take calls, each name once.

        Raises: NoWorkerAvailable; UpstreamError where no worker tells of any.
        """
        call = own_call("GET", "/v1/models", headers)

        async def ask(worker: Worker) -> Answer:
            return await self._quickly(worker, call)

        answers = await self._fleet.each(self._routable(), ask)
        found: dict[str, object] = {}
        for answer in answers:
            data = answer.body.get("data") if answer.succeeded and isinstance(answer.body, dict) else None
            for model in data if isinstance(data, list) else []:
                if isinstance(model, dict) and isinstance(model.get("id"), str):
                    found.setdefault(model["id"], model)
        if not found:
            raise UpstreamError(f"No worker told of a model: {answers[0].message}")
        return list(found.values())

    async def from_one(self, call: Call) -> Reply:
        """Return what the first worker that takes calls says; the next one is asked where it says nothing.

        All are quick to say it, but for `/health_generate`, which samples a token.

        Raises: NoWorkerAvailable; the first worker's UpstreamError where no other one answered.
        """
        problem: UpstreamError | None = None
        for worker in self._routable():
            try:
                return await self._fleet.fetch(worker, call, quickly=call.path != "/health_generate")
            except UpstreamError as error:
                problem = problem or error
        assert problem is not None
        raise problem

    async def _quickly(self, worker: Worker, call: Call) -> Answer:
        return await self._fleet.ask(worker, call, quickly=True)

    def _routable(self) -> list[Worker]:
        if not self._pool.routable:
            raise NoWorkerAvailable(
                f"None of the {len(self._pool)} workers takes calls. GET /workers shows their state",
                retry_after_s=WORKER_RETRY_AFTER_S,
            )
        return list(self._pool.routable)
