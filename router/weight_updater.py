"""Takes the whole fleet through the steps of `weights`, over real connections.

*Invariant*: a worker that was told to pause is told to continue, whether the update succeeds, fails, is given
up because the router shuts down, or its client has gone.

*How it is kept*: the steps run in a task of their own, and so does what comes after them. The client only
waits for the second; hanging up ends neither. Shutting down cancels the first, and waits for the second.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..calls import Headers, JsonObject
from ..errors import Conflict
from .answers import Answer, status_of
from .fleet import Fleet, own_call
from .weights import Progress, Step, WeightUpdate, given_up
from .workers import Worker, WorkerPool

CONTINUE_ATTEMPTS: Final = 3
"""How often a worker is told to continue: one that stays paused holds its calls for ever."""

CONTINUE_RETRY_S: Final = 0.2
"""Time between two of these attempts."""

_log = logging.getLogger("espalier.router")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How an update went, worker by worker."""

    update: WeightUpdate
    progress: Mapping[Worker, Progress]
    duration_s: float

    @property
    def status(self) -> int:
        """200 where all workers serve the new weights, 207 where some do, 502 where none does."""
        return status_of(sum(each.succeeded for each in self.progress.values()), len(self.progress))

    def told(self) -> JsonObject:
        """Return the body that tells of it."""
        return {
            "total": len(self.progress),
            "succeeded": sum(each.succeeded for each in self.progress.values()),
            "model_path": self.update.model_path,
            "weight_version": self.update.weight_version,
            "mode": self.update.mode.value,
            "latency_ms": _milliseconds(self.duration_s),
            "results": {worker.id: _result(worker, each) for worker, each in self.progress.items()},
            "failed": [
                {
                    "worker_id": worker.id,
                    "url": worker.url,
                    "error": f"{each.failure.step}_failed",
                    "message": each.failure.message,
                }
                for worker, each in self.progress.items()
                if each.failure is not None
            ],
        }


class WeightUpdater:
    """Runs one update at a time."""

    def __init__(self, pool: WorkerPool, fleet: Fleet) -> None:
        self._pool = pool
        self._fleet = fleet
        self._steps: asyncio.Task[None] | None = None
        self._running: asyncio.Task[Finished] | None = None
        self.last: Finished | None = None
        """How the last update went."""

    @property
    def is_running(self) -> bool:
        """Whether an update is under way."""
        return self._running is not None and not self._running.done()

    async def run(self, update: WeightUpdate, workers: Sequence[Worker], headers: Headers) -> Finished:
        """Update `workers`; `headers` are those of the call that asked for it. Cancelling ends nothing.

        Raises: Conflict where an update is under way.
        """
        if self.is_running:
            raise Conflict("An update of the weights is under way; GET /fleet/weights tells when it is done")
        progress = {worker: Progress() for worker in workers}
        steps = asyncio.create_task(self._take_steps(update, progress, headers))
        running = asyncio.create_task(self._see_to_its_end(steps, update, progress, headers))
        self._steps, self._running = steps, running
        return await asyncio.shield(running)

    async def aclose(self) -> None:
        """Give up what is under way; return once no worker is left paused by it."""
        if self._steps is not None and self._running is not None:
            self._steps.cancel()
            await asyncio.wait([self._running])

    async def _see_to_its_end(
        self,
        steps: "asyncio.Task[None]",
        update: WeightUpdate,
        progress: dict[Worker, Progress],
        headers: Headers,
    ) -> Finished:
        began_s = time.monotonic()
        _log_begin(update, len(progress))
        await asyncio.wait([steps])
        reason = _why_it_ended_early(steps)
        if reason is not None:
            progress.update({worker: given_up(each, reason) for worker, each in progress.items()})
        self._note_versions(progress)
        await self._take(Step.CONTINUE, update, progress, headers)
        self.last = Finished(update=update, progress=progress, duration_s=time.monotonic() - began_s)
        _log_end(self.last)
        return self.last

    async def _take_steps(
        self, update: WeightUpdate, progress: dict[Worker, Progress], headers: Headers
    ) -> None:
        await self._take(Step.ASK, update, progress, headers)
        self._note_versions(progress)  # the old ones, so that the pool sees the new one come after them
        for step in (Step.PAUSE, Step.UPDATE, Step.CHECK):
            await self._take(step, update, progress, headers)

    async def _take(
        self, step: Step, update: WeightUpdate, progress: dict[Worker, Progress], headers: Headers
    ) -> None:
        async def one(worker: Worker) -> None:
            progress[worker] = progress[worker].began(step)
            answer = await self._tell(worker, step, update, headers)
            progress[worker] = progress[worker].answered(step, answer, update)

        await self._fleet.each([worker for worker, each in progress.items() if each.takes_part(step)], one)

    async def _tell(self, worker: Worker, step: Step, update: WeightUpdate, headers: Headers) -> Answer:
        request = update.request(step)
        call = own_call(request.method, request.path, headers, request.body)
        answer = await self._fleet.ask(worker, call, quickly=request.is_quick)
        if step is Step.CONTINUE:
            for _ in range(CONTINUE_ATTEMPTS - 1):
                if answer.succeeded:
                    break
                await asyncio.sleep(CONTINUE_RETRY_S)
                answer = await self._fleet.ask(worker, call, quickly=request.is_quick)
        if step in (Step.PAUSE, Step.CONTINUE):
            await self._fleet.note(answer, call)
        return answer

    def _note_versions(self, progress: Mapping[Worker, Progress]) -> None:
        """Tell the pool who serves what, before anybody goes on: first the new version, then who lacks it."""
        for worker, each in sorted(progress.items(), key=lambda item: item[1].failure is not None):
            if each.served is not None:
                self._pool.note_weight_version(worker, each.served)


def _why_it_ended_early(steps: "asyncio.Task[None]") -> str | None:
    if steps.cancelled():
        return "The router is shutting down"
    error = steps.exception()
    if error is None:
        return None
    _log.error("event=weight_update_broke", exc_info=error)
    return "The router failed to make this update; its log says why"


def _log_begin(update: WeightUpdate, workers: int) -> None:
    _log.info(
        "event=weight_update_began version=%r mode=%s workers=%d", update.weight_version, update.mode, workers
    )


def _log_end(finished: Finished) -> None:
    level = logging.INFO if finished.status == 200 else logging.WARNING
    _log.log(
        level,
        "event=weight_update_ended version=%r mode=%s succeeded=%d total=%d duration_s=%.3f",
        finished.update.weight_version,
        finished.update.mode,
        sum(each.succeeded for each in finished.progress.values()),
        len(finished.progress),
        finished.duration_s,
    )


def _result(worker: Worker, progress: Progress) -> JsonObject:
    result: JsonObject = {
        "url": worker.url,
        "success": progress.succeeded,
        "weight_version": progress.served,
        "may_be_paused": progress.may_be_paused,
        "latency_ms": {step.value: _milliseconds(took) for step, took in progress.latencies_s.items()},
    }
    if progress.failure is not None:
        result |= {"failed_step": progress.failure.step.value, "message": progress.failure.message}
    if progress.refusal is not None and progress.failure is None:
        result["warning"] = progress.refusal
    return result


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
