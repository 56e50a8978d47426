"""Finds dead workers that live again."""

import asyncio
import logging

from ..calls import Call
from ..errors import HttpError
from .auth import WorkerCredentials
from .health import Signal, State
from .upstream import Upstream
from .workers import Worker, WorkerPool

_log = logging.getLogger("espalier.router")


class Prober:
    """Asks every dead worker for `/ready` (older ones: `/health`), over connections of its own."""

    def __init__(
        self,
        pool: WorkerPool,
        *,
        interval_s: float,
        timeout_s: float,
        credentials: WorkerCredentials | None = None,
    ) -> None:
        self._pool = pool
        self._interval_s = interval_s
        self._upstream = Upstream(
            connect_timeout_s=timeout_s, request_timeout_s=timeout_s, credentials=credentials
        )

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            dead = [worker for worker in self._pool if worker.health.state is State.DEAD]
            try:
                await asyncio.gather(*(self._probe(worker) for worker in dead))
            finally:
                self._upstream.close_idle()

    async def _probe(self, worker: Worker) -> None:
        status = 404
        try:
            for path in ("/ready", "/health"):
                if status == 404:
                    status = await self._ask(worker, path)
        except HttpError:
            return
        except Exception:  # noqa: BLE001  one worker's trouble must not end the probing of the others
            _log.exception("event=probe_failed worker=%s", worker.url)
            return
        if status == 200:
            self._pool.report(worker, Signal.PROBE_OK)
            _log.info("event=worker_revived worker=%s", worker.url)

    async def _ask(self, worker: Worker, path: str) -> int:
        call = Call(method="GET", path=path, target=path.encode(), headers=[], body=b"", request_id="probe")
        reply = await self._upstream.send(worker.origin, call)
        await reply.aclose()
        return reply.status
