"""The innermost handler: lease a worker, send the call, relay the reply.

*Invariant*: a worker's `in_flight` counts exactly the calls whose last byte has neither come nor been
given up.
"""

from collections.abc import Callable
from typing import Final

from ..calls import ByteStream, Call, Reply
from ..errors import HttpError, NoWorkerAvailable
from ..policies import Policy
from .connection import ConnectFailed
from .health import Signal
from .upstream import Upstream
from .workers import Worker, WorkerPool

RETRY_AFTER_S: Final = 5
"""What a client is told to wait when there is no worker: about one round of health probes."""


class Forwarder:
    """Sends calls to workers of the pool, chosen by the policy."""

    def __init__(self, pool: WorkerPool, policy: Policy, upstream: Upstream) -> None:
        self._pool = pool
        self._policy = policy
        self._upstream = upstream

    async def __call__(self, call: Call) -> Reply:
        """Return a worker's reply to `call`.

        A worker that takes no connection cannot have begun the call, so the next one is asked, each at
        most once.

        Raises: NoWorkerAvailable, UpstreamError, UpstreamTimeout.
        """
        refused: list[Worker] = []
        refusal: ConnectFailed | None = None
        while True:
            candidates = self._pool.routable
            if refused:
                candidates = [worker for worker in candidates if worker not in refused]
            if not candidates:
                if refusal is None:
                    raise self._nobody()
                refused[-1].replies[refusal.status] += 1
                raise refusal
            worker = self._policy.choose(call, candidates)
            try:
                return await self._send(worker, call)
            except ConnectFailed as error:
                self._pool.report(worker, Signal.CONNECT_FAILED)
                refused.append(worker)
                refusal = error

    async def _send(self, worker: Worker, call: Call) -> Reply:
        worker.in_flight += 1
        try:
            reply = await self._upstream.send(worker.origin, call)
        except BaseException as error:
            worker.in_flight -= 1
            if isinstance(error, HttpError) and not isinstance(error, ConnectFailed):
                worker.replies[error.status] += 1
            raise
        worker.replies[reply.status] += 1
        self._pool.report(worker, Signal.CALL_OK)
        if isinstance(reply.body, bytes):
            worker.in_flight -= 1
        else:
            reply.body = _LeasedStream(reply.body, lambda: _release(worker))
        return reply

    def _nobody(self) -> NoWorkerAvailable:
        if not len(self._pool):
            message = "There are no workers. Add one: POST /add_worker?url=http://host:port"
        else:
            message = (
                f"None of the {len(self._pool)} workers takes connections. GET /workers shows their state"
            )
        return NoWorkerAvailable(message, retry_after_s=RETRY_AFTER_S)


def _release(worker: Worker) -> None:
    worker.in_flight -= 1


class _LeasedStream:
    """A stream that gives its worker back once: at its end, when it is closed, or when it is dropped."""

    __slots__ = ("_chunks", "_release", "_stream")

    def __init__(self, stream: ByteStream, release: Callable[[], None]) -> None:
        self._stream = stream
        self._chunks = aiter(stream)
        self._release: Callable[[], None] | None = release

    def __aiter__(self) -> "_LeasedStream":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        self._give_back()
        await self._stream.aclose()

    def __del__(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()
