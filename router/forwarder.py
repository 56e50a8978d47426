"""The innermost handler: lease a worker, send the call, relay the reply; try again where that is safe.

*Invariant*: a worker's `in_flight` counts exactly the calls whose last byte has neither come nor been given
up. A call is never sent again once a byte of a reply has gone to its client, nor while an attempt that may
have begun has not been aborted.

*Theory of operation*: `retries` says when a call may be sent again. A call that SGLang takes a rid for gets
one of ours for each attempt (see `rids`), so that whatever ends it early, a client that hangs up, a deadline,
a connection that breaks, is followed by the exact abort of what its worker may still generate.
"""

import asyncio
from typing import Final

from ..calls import Call, Reply
from ..errors import HttpError, NoWorkerAvailable, UpstreamTimeout
from ..policies import Policy
from .aborts import Aborter
from .course import in_a_task
from .failures import ConnectFailed, ConnectionDropped, FirstByteTimeout, OutOfSockets
from .flights import Flight, Flights
from .health import Signal
from .lease import End, LeasedStream
from .retries import RetryPolicy, RetryReason, is_queue_full
from .rids import RidMaker, RidRestorer, as_told, naming_of
from .tally import Tally
from .upstream import Upstream
from .workers import Worker, WorkerPool

WORKER_RETRY_AFTER_S: Final = 5
"""What a client is told to wait when there is no worker: about one round of health probes."""

ABORT_PATIENCE_S: Final = 1.0
"""How long a retry waits for the first attempt's abort to be heard. A worker that hangs hears it later."""

ATTEMPTS_HEADER: Final = b"x-espalier-attempts"
"""Tells a client how often its call was sent to a worker."""

_SENT_ONCE: Final = (ATTEMPTS_HEADER, b"1")


class Forwarder:
    """Sends calls to workers of the pool, chosen by the policy."""

    def __init__(
        self,
        pool: WorkerPool,
        policy: Policy,
        upstream: Upstream,
        aborter: Aborter,
        *,
        flights: Flights,
        tally: Tally,
        retry: RetryPolicy,
    ) -> None:
        """Abort by `aborter` what ends early; find calls by `flights`; count in `tally`."""
        self._pool = pool
        self._policy = policy
        self._upstream = upstream
        self._aborter = aborter
        self._flights = flights
        self._tally = tally
        self._retry_policy = retry
        self._rids = RidMaker()

    async def __call__(self, call: Call) -> Reply:
        """Return a worker's reply to `call`; its header `x-espalier-attempts` tells how often it was sent.

        Raises: NoWorkerAvailable; UpstreamError, UpstreamTimeout, with the same header.
        """
        self._retry_policy.budget.count_call()
        candidates = self._pool.routable
        if not candidates:
            raise self._nobody()
        flight = Flight(call, naming_of(call), asyncio.get_running_loop().time())
        is_streaming = False
        try:
            outcome = await self._attempt(flight, self._policy.choose(call, candidates))
            if isinstance(outcome, HttpError) or (outcome.status == 503 and is_queue_full(outcome)):
                outcome = await self._retry(flight, outcome)
            told = _SENT_ONCE if flight.attempts == 1 else (ATTEMPTS_HEADER, b"%d" % flight.attempts)
            if isinstance(outcome, HttpError):
                outcome.extra_headers.append(told)
                raise outcome
            outcome.headers.append(told)
            is_streaming = not isinstance(outcome.body, bytes)
            return outcome
        finally:
            if not is_streaming:
                self._flights.land(flight)

    async def _retry(self, flight: Flight, outcome: Reply | HttpError) -> Reply | HttpError:
        """Send a call again, after `outcome`, until that does no good any more; return the last outcome."""
        await in_a_task()
        tried: set[Worker] = set()
        refused: set[Worker] = set()
        rounds = 1
        while True:
            reason = self._reason_to_retry(flight, outcome)
            heard = self._abort_lost(flight, outcome)
            if reason is None:
                return outcome
            if heard is not None:
                await asyncio.wait([heard], timeout=ABORT_PATIENCE_S)
            worker = flight.worker
            assert worker is not None
            if reason is not RetryReason.CONNECTION_STALE:
                (refused if reason is RetryReason.CONNECT_FAILED else tried).add(worker)
                candidates = self._candidates(tried | refused)
                if not candidates and self._candidates(refused):
                    await asyncio.sleep(self._retry_policy.backoff.delay_s(rounds))
                    rounds += 1
                    tried.clear()
                    candidates = self._candidates(refused)
                if not candidates:
                    return outcome
                worker = self._policy.choose(flight.call, candidates)
            if flight.is_aborted:
                return outcome
            self._tally.retries[reason] += 1
            outcome = await self._attempt(flight, worker, on_fresh=reason is RetryReason.CONNECTION_STALE)

    def _candidates(self, excluded: set[Worker]) -> list[Worker]:
        return [worker for worker in self._pool.routable if worker not in excluded]

    def _reason_to_retry(self, flight: Flight, outcome: Reply | HttpError) -> RetryReason | None:
        """Return why the call should be sent again, having taken that out of the budget; else None."""
        reason = _reason(outcome)
        if reason is None or flight.is_aborted or flight.attempts > self._retry_policy.max_retries:
            return None
        if reason not in _UNBEGUN and not flight.generated_rids():
            return None  # it cannot be aborted by name, and may still run
        return reason if self._retry_policy.budget.take() else None

    async def _attempt(self, flight: Flight, worker: Worker, *, on_fresh: bool = False) -> Reply | HttpError:
        """Send the call to `worker`; return its reply or how that failed. Raises only CancelledError.

        `on_fresh` asks for a new connection.
        """
        call, naming, spent_s = flight.call, flight.naming, 0.0
        if flight.attempts == 0:
            flight.number = self._rids.next_call()
        else:
            flight.sent_at_s = asyncio.get_running_loop().time()
            spent_s = flight.sent_at_s - flight.began_at_s
        flight.attempts += 1
        flight.worker = worker
        rid = self._rids.rid(flight.number, flight.attempts)
        self._flights.depart(flight, rid)
        worker.in_flight += 1
        try:
            reply = await self._upstream.send(
                worker.origin,
                call,
                body=call.body if naming is None else naming.body(rid),
                spent_s=spent_s,
                on_fresh=on_fresh,
                may_resend=False,
            )
        except HttpError as error:
            worker.in_flight -= 1
            self._note_failure(worker, error)
            return error
        except BaseException:
            worker.in_flight -= 1
            self._abort(flight, "given_up")
            raise
        worker.replies[reply.status] += 1
        self._pool.report(worker, Signal.CALL_OK)
        client_rid = naming.client_rid if naming is not None else None
        if isinstance(reply.body, bytes):
            worker.in_flight -= 1
            if client_rid is not None:
                reply.body = reply.body.replace(rid, as_told(client_rid))
            return reply
        restorer = None
        if client_rid is not None:
            restorer = RidRestorer(rid, client_rid)
            reply.headers = [field for field in reply.headers if field[0] != b"content-length"]
        reply.body = LeasedStream(reply.body, lambda end: self._end_stream(flight, worker, end), restorer)
        return reply

    def _end_stream(self, flight: Flight, worker: Worker, end: End | HttpError) -> None:
        worker.in_flight -= 1
        self._flights.land(flight)
        if end is End.GIVEN_UP:
            self._abort(flight, "given_up")
        elif isinstance(end, HttpError):
            self._note_failure(worker, end)
            self._abort_lost(flight, end)

    def _note_failure(self, worker: Worker, error: HttpError) -> None:
        if isinstance(error, OutOfSockets):
            pass
        elif isinstance(error, ConnectFailed):
            self._pool.report(worker, Signal.CONNECT_FAILED)
        elif isinstance(error, ConnectionDropped) and not error.is_stale:
            self._pool.report(worker, Signal.CALL_BROKEN)
        worker.replies[error.status] += 1

    def _abort_lost(self, flight: Flight, outcome: Reply | HttpError) -> "asyncio.Future[None] | None":
        """Abort what may still run of an attempt that gave no reply."""
        if isinstance(outcome, Reply | ConnectFailed):
            return None
        return self._abort(flight, "timeout" if isinstance(outcome, UpstreamTimeout) else "connection_broken")

    def _abort(self, flight: Flight, cause: str) -> "asyncio.Future[None] | None":
        rids = flight.generated_rids()
        if not rids or flight.worker is None:
            return None
        age_s = asyncio.get_running_loop().time() - flight.sent_at_s
        return self._aborter.abort(flight.worker.origin, rids, age_s=age_s, cause=cause)

    def _nobody(self) -> NoWorkerAvailable:
        if not len(self._pool):
            message = "There are no workers. Add one: POST /add_worker?url=http://host:port"
        else:
            message = f"None of the {len(self._pool)} workers takes calls now. GET /workers shows their state"
        return NoWorkerAvailable(message, retry_after_s=WORKER_RETRY_AFTER_S)


_UNBEGUN: Final = frozenset(
    {RetryReason.CONNECT_FAILED, RetryReason.QUEUE_FULL, RetryReason.CONNECTION_STALE}
)
"""The worker has not begun the call: a kept connection that ends without a byte was closed before."""


def _reason(outcome: Reply | HttpError) -> RetryReason | None:
    if isinstance(outcome, Reply):
        return RetryReason.QUEUE_FULL if is_queue_full(outcome) else None
    if isinstance(outcome, ConnectFailed):
        return RetryReason.CONNECT_FAILED
    if isinstance(outcome, FirstByteTimeout):
        return RetryReason.FIRST_BYTE_TIMEOUT
    if isinstance(outcome, ConnectionDropped):
        return RetryReason.CONNECTION_STALE if outcome.is_stale else RetryReason.CONNECTION_BROKEN
    return None
