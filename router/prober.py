"""Asks every worker, again and again, whether it serves and which weights.

Each worker has a task of its own, so that one that hangs delays no other. A probe is two or three small
requests of about a millisecond each, over connections that no call shares: a router full of calls must not
look like a dead worker. Probes are spread in time, and at most `MAX_CONCURRENT` requests run at once.

What is asked, and what the answer means:

    /ready   404                  an older SGLang: `/health` is asked in its place
             below 500            it serves; a server that knows neither path, or wants a key, serves as well
             else, /ping 200      it lives and takes no calls now: paused (or shutting down)
             else, was paused     still paused: a `/health` asked meanwhile makes SGLang say it is unhealthy
             else, /health < 500  it serves, though it was marked unhealthy: asking has cleared the mark
             else                 it does not serve
    /model_info, in older ones /get_weight_version: the weight version

`/health` makes the worker generate a token, which takes a second where it is well and 20 s where it is
paused. So it is never asked of a worker that says by `/ready` that it serves, and with patience of one that
does not. An older worker that leaves it unanswered and still tells its version is paused, or too busy for it.

The version is noted before the outcome is told: a worker that comes back with old weights is stale first.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Final

import msgspec

from ..calls import Call, Headers, Reply
from ..errors import HttpError, UpstreamError, UpstreamTimeout
from .auth import WorkerCredentials
from .failures import ConnectFailed, OutOfSockets
from .health import Signal, State
from .upstream import Upstream
from .workers import ProbeRecord, Worker, WorkerPool

MAX_CONCURRENT: Final = 64
"""Probes at the same time."""

JITTER: Final = 0.25
"""Share of the interval by which it is made longer or shorter, at random each time."""

MIN_GAP_S: Final = 0.05
"""Shortest time between two probes of one worker, however much it is doubted."""

STALE_GAP_S: Final = 0.1
"""Time after which a stale worker is read again, doubled each time up to the interval: a framework that
updates its engines one after the other has the next one ready soon."""

HEALTH_TIMEOUT_S: Final = 25.0
"""Time for `/health` of a worker that is not ready: SGLang itself gives up after 20 s."""

IDLE_TIMEOUT_S: Final = 0.5
"""How long a connection is kept: for the next request of the same probe, not for the next probe."""

MAX_REPLY_BYTES: Final = 1 << 20
"""Longest reply that is read."""

VERSION_PATHS: Final = ("/model_info", "/get_weight_version")
"""Where a worker tells its weight version: now, and in older SGLang."""

_log = logging.getLogger("espalier.router")


class Prober:
    """Probes the workers of a pool, each about every `interval_s`, and at once where the pool doubts it."""

    def __init__(
        self,
        pool: WorkerPool,
        *,
        interval_s: float,
        timeout_s: float,
        endpoint: str = "/ready",
        health_timeout_s: float = HEALTH_TIMEOUT_S,
        max_concurrent: int = MAX_CONCURRENT,
        jitter: Callable[[], float] = lambda: random.uniform(-JITTER, JITTER),
        credentials: WorkerCredentials | None = None,
    ) -> None:
        """Probe about every `interval_s`; `credentials`, where given, stand in for a worker's own key."""
        self._pool = pool
        self._interval_s = interval_s
        self._endpoint = endpoint
        self._jitter = jitter
        self._upstream = _upstream(timeout_s, credentials)
        self._patient_upstream = _upstream(health_timeout_s, credentials)
        self._running = asyncio.Semaphore(max_concurrent)
        self._doubts: dict[Worker, asyncio.Event] = {}

    @property
    def watched(self) -> int:
        """How many workers are probed now."""
        return len(self._doubts)

    async def run(self) -> None:
        """Probe until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:

                def look(worker: Worker) -> None:
                    doubt = self._doubts.get(worker)
                    if doubt is not None:
                        doubt.set()
                    elif not worker.health.is_draining:
                        doubt = self._doubts[worker] = asyncio.Event()
                        tasks.create_task(self._watch(worker, doubt))

                self._pool.on_doubt = look
                for worker in self._pool:
                    look(worker)
                try:
                    await asyncio.Event().wait()
                finally:
                    self._pool.on_doubt = None
        finally:
            self._doubts.clear()
            self._upstream.close_idle()
            self._patient_upstream.close_idle()

    async def _watch(self, worker: Worker, doubt: asyncio.Event) -> None:
        """Probe one worker until it is removed."""
        stale_gap_s = STALE_GAP_S
        while not worker.health.is_draining:
            doubt.clear()
            await self._probe(worker)
            gap_s = self._interval_s * (1 + self._jitter())
            if worker.health.state is State.STALE:
                gap_s, stale_gap_s = min(gap_s, stale_gap_s), stale_gap_s * 2
            else:
                stale_gap_s = STALE_GAP_S
            await asyncio.sleep(min(gap_s, MIN_GAP_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, gap_s - MIN_GAP_S)):
                    await doubt.wait()
        self._doubts.pop(worker, None)

    async def _probe(self, worker: Worker) -> None:
        """Look at a worker; tell the pool what was found."""
        was_paused, began_s, detail = worker.health.is_paused, time.monotonic(), ""
        try:
            outcome = await self._examine(worker)
        except OutOfSockets:
            return  # it was this side that could not ask
        except ConnectFailed as error:
            outcome, detail = Signal.CONNECT_FAILED, error.message
        except HttpError as error:
            outcome, detail = Signal.PROBE_FAILED, error.message
        except Exception as error:  # noqa: BLE001  one worker's trouble must not end the probing of the others
            _log.exception("event=probe_broke worker=%s", worker.url)
            outcome, detail = Signal.PROBE_FAILED, repr(error)
        worker.last_probe = ProbeRecord(
            outcome=outcome, ended_at=time.time(), took_s=time.monotonic() - began_s, detail=detail
        )
        if worker.health.is_paused is was_paused:  # else somebody told meanwhile, and knows better
            self._pool.report(worker, outcome)

    async def _examine(self, worker: Worker) -> Signal:
        """Return what a worker says of itself, its version noted.

        Raises: HttpError where it does not say it.
        """
        outcome = await self._readiness(worker)
        moment = self._pool.moment
        version = await self._weight_version(worker)
        if version is not None:
            self._pool.note_weight_version(worker, version, as_of=moment)
        return outcome

    async def _readiness(self, worker: Worker) -> Signal:
        """Return `PROBE_OK` or `PROBE_PAUSED`.

        Raises: HttpError where it is neither.
        """
        status = (await self._ask(worker, self._endpoint)).status
        if status == 404:
            try:
                status = (await self._ask(worker, "/health")).status
            except UpstreamTimeout:
                return Signal.PROBE_PAUSED
        if status < 500:
            return Signal.PROBE_OK
        if (await self._ask(worker, "/ping")).status == 200 or worker.health.is_paused:
            return Signal.PROBE_PAUSED
        reply = await self._patient_upstream.send(worker.origin, _get("/health", worker.api_key))
        await reply.aclose()
        if reply.status >= 500:
            raise UpstreamError(f"The worker says that it does not serve: /health is {reply.status}")
        return Signal.PROBE_OK

    async def _weight_version(self, worker: Worker) -> str | None:
        """Return the version of a worker's weights; None where it tells none."""
        for path in VERSION_PATHS:
            reply = await self._ask(worker, path)
            version = _version_in(await reply.read()) if reply.status == 200 else None
            if version is not None:
                return version
        return None

    async def _ask(self, worker: Worker, path: str) -> Reply:
        async with self._running:
            reply = await self._upstream.send(worker.origin, _get(path, worker.api_key))
            await reply.read(MAX_REPLY_BYTES)
            return reply


async def revive_unseen(pool: WorkerPool, *, interval_s: float) -> None:
    """Every `interval_s`, let dead workers take calls again: where nobody may probe, calls find out."""
    while True:
        await asyncio.sleep(interval_s)
        for worker in pool:
            if worker.health.contact is State.DEAD:
                pool.report(worker, Signal.ADDED_AGAIN)
                pool.report(worker, Signal.PROBE_OK)


def _upstream(timeout_s: float, credentials: WorkerCredentials | None) -> Upstream:
    return Upstream(
        connect_timeout_s=timeout_s,
        request_timeout_s=timeout_s,
        idle_timeout_s=IDLE_TIMEOUT_S,
        credentials=credentials,
    )


def _get(path: str, api_key: str | None) -> Call:
    headers: Headers = [(b"authorization", b"Bearer " + api_key.encode())] if api_key else []
    return Call(method="GET", path=path, target=path.encode(), headers=headers, body=b"", request_id="probe")


def _version_in(body: bytes) -> str | None:
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    version = told.get("weight_version") if isinstance(told, dict) else None
    return str(version) if isinstance(version, str | int) and version != "" else None
