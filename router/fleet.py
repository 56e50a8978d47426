"""Sends control calls to workers, and lets the pool know what they changed.

Every connection is a fresh one: a request on a kept connection that turns out dead would have to be sent
again, and a worker may not stand a second update of its weights.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from ..calls import Call, Headers, Reply
from ..errors import HttpError, UpstreamTimeout
from .addressing import addressed, chosen_workers
from .answers import Answer, Report, report_of, status_of, told
from .control_calls import Effect, control_call
from .health import Signal
from .upstream import Upstream
from .workers import Worker, WorkerPool

T = TypeVar("T")
R = TypeVar("R")

MAX_REPLY_BYTES: Final = 1 << 20
"""A worker's answer to a control call is short; a longer one is not kept."""

QUICK_TIMEOUT_S: Final = 10.0
"""Longest time for what a worker answers at once, such as its model's name, even while it loads weights."""


class Fleet:
    """Asks workers, at most `concurrency` at a time; `quick_timeout_s` is for what they answer at once."""

    def __init__(
        self,
        pool: WorkerPool,
        upstream: Upstream,
        *,
        concurrency: int,
        quick_timeout_s: float = QUICK_TIMEOUT_S,
    ) -> None:
        self._pool = pool
        self._upstream = upstream
        self._concurrency = concurrency
        self._quick_timeout_s = quick_timeout_s

    async def broadcast(self, call: Call, workers: Sequence[Worker] | None = None) -> Reply:
        """Send `call` to `workers`, or to all; return the reply that tells how each one answered.

        Raises: NoWorkerAvailable, and what `addressed` raises.
        """
        asked = chosen_workers(self._pool, []) if workers is None else workers
        answers = await self.tell(addressed(call, asked, self._pool))
        succeeded = sum(answer.succeeded for answer in answers)
        return Reply.of_json(told(answers), status_of(succeeded, len(answers)))

    async def tell(self, calls: Sequence[tuple[Worker, Call]]) -> list[Answer]:
        """Send each worker its call; return the answers in order, and note what the calls changed."""

        async def one(to: tuple[Worker, Call]) -> Answer:
            worker, call = to
            return await self.note(await self.ask(worker, call), call)

        at_once = any(control_call(call.path).is_collective for _, call in calls)
        return await self.each(calls, one, at_once=at_once)

    async def each(
        self, items: Sequence[T], do: Callable[[T], Awaitable[R]], *, at_once: bool = False
    ) -> list[R]:
        """Return `do(item)` of every item, in order; all begin at the same time where `at_once`."""
        limit = asyncio.Semaphore(max(1, len(items)) if at_once else self._concurrency)

        async def limited(item: T) -> R:
            async with limit:
                return await do(item)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(limited(item)) for item in items]
        return [task.result() for task in tasks]

    async def ask(
        self, worker: Worker, call: Call, *, quickly: bool = False, max_bytes: int = MAX_REPLY_BYTES
    ) -> Answer:
        """Return the worker's answer to `call`, or why there is none; the limits are those of `fetch`."""
        began_s = time.monotonic()
        try:
            reply = await self.fetch(worker, call, quickly=quickly, max_bytes=max_bytes)
            answer = answer_of(worker, reply.status, await reply.read())
        except HttpError as error:
            body = {"error": error.message}
            answer = Answer(worker=worker, status=error.status, code=error.code, body=body)
        return dataclasses.replace(answer, latency_s=time.monotonic() - began_s)

    async def fetch(
        self, worker: Worker, call: Call, *, quickly: bool = False, max_bytes: int = MAX_REPLY_BYTES
    ) -> Reply:
        """Return the worker's whole reply as it is: at most `max_bytes`, and at once where `quickly`.

        Raises: UpstreamError, UpstreamTimeout.
        """
        try:
            async with asyncio.timeout(self._quick_timeout_s if quickly else None):
                reply = await self._upstream.send(worker.origin, call)
                await reply.read(max_bytes)
                return reply
        except TimeoutError:
            raise UpstreamTimeout(
                f"The worker {worker.origin} did not answer within {self._quick_timeout_s:g} s"
            ) from None

    async def note(self, answer: Answer, call: Call) -> Answer:
        """Tell the pool what `call` changed; return the answer with the version where it may have changed.

        A worker can refuse an update and have made it all the same (SGLang does where it could not flush
        its cache), so it is asked what it serves, whatever it answered.
        """
        effect = control_call(call.path).effect
        if effect is Effect.CHANGES_WEIGHTS and answer.code is None:
            report = await self.report(answer.worker, call.headers)
            if report is not None and report.weight_version is not None:
                self._pool.note_weight_version(answer.worker, report.weight_version)
                return dataclasses.replace(answer, weight_version=report.weight_version)
        elif effect is Effect.PAUSES and answer.succeeded:
            self._pool.report(answer.worker, Signal.PAUSED)
        elif effect is Effect.RESUMES and answer.succeeded:
            self._pool.report(answer.worker, Signal.RESUMED)
        return answer

    async def report(self, worker: Worker, headers: Headers) -> Report | None:
        """Return what the worker says that it serves; None where it gives no answer that can be read."""
        return report_of(await self.ask(worker, own_call("GET", "/model_info", headers), quickly=True))


def answer_of(worker: Worker, status: int, body: bytes) -> Answer:
    """Return what a worker's reply says."""
    return Answer(worker=worker, status=status, body=_decoded(body))


def own_call(method: str, target: str, headers: Headers, body: object = None) -> Call:
    """Return a call of the router's own to `target`, a path with or without a query.

    `headers` are those of the call that it is made for: the workers' key stands there.
    """
    kept = [field for field in headers if field[0] in (b"authorization", b"x-request-id")]
    content = b"" if body is None else msgspec.json.encode(body)
    if body is not None:
        kept.append((b"content-type", b"application/json"))
    path = target.partition("?")[0]
    return Call(method=method, path=path, target=target.encode(), headers=kept, body=content, request_id="")


def _decoded(body: bytes) -> object:
    try:
        decoded: object = msgspec.json.decode(body) if body else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")
    return decoded
