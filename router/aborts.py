"""Tells workers that a generation is not wanted any more.

*Theory of operation*: each worker has a lane, a queue that a few tasks empty, so that the two thousand calls
that a rollout drops at the end of a step do not become two thousand connections, and a worker that hangs
holds up nobody else's aborts. A lane lives as long as it has something to do.

An abort travels on another connection than its call and can overtake it; the worker then knows no such rid,
and says nothing of it. So the abort of a call that was sent a moment ago is said twice.
"""

import asyncio
import logging
from collections import deque
from typing import Final

import msgspec

from ..calls import Call
from ..errors import HttpError
from .origin import Origin
from .tally import Tally
from .upstream import Upstream

LANE_WIDTH: Final = 8
"""Aborts that are under way to one worker at a time."""

YOUNG_S: Final = 1.0
"""A call that was sent less than this ago may not have been read by its worker yet."""

REPEAT_AFTER_S: Final = 0.25
"""How long after the first the second abort of a young call follows."""

ABORT_TIMEOUT_S: Final = 5.0
"""How long a worker may take to hear an abort. It answers at once unless it hangs."""

CLOSING_S: Final = 2.0
"""How long the aborts that are left may take when the router ends."""

_log = logging.getLogger("espalier.router")


class Aborter:
    """Sends `/abort_request` for single rids, over connections of its own."""

    def __init__(self, upstream: Upstream, tally: Tally) -> None:
        """Use `upstream`, whose time-outs are those of an abort."""
        self._upstream = upstream
        self._tally = tally
        self._lanes: dict[Origin, _Lane] = {}
        self._is_closed = False

    def abort(self, origin: Origin, rids: list[str], *, age_s: float, cause: str) -> "asyncio.Future[None]":
        """Abort `rids` at a worker; the future is done when it has heard all of them, or cannot.

        `age_s` is how long ago the call was sent.
        """
        loop = asyncio.get_running_loop()
        self._tally.aborts[cause] += len(rids)
        if age_s < YOUNG_S:
            loop.call_later(REPEAT_AFTER_S, self._enqueue, origin, rids, loop.create_future())
        heard: asyncio.Future[None] = loop.create_future()
        self._enqueue(origin, rids, heard)
        return heard

    async def aclose(self) -> None:
        """Wait for what is under way, for a little while."""
        self._is_closed = True
        tasks = [task for lane in self._lanes.values() for task in lane.tasks]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSING_S)
            for task in late:
                task.cancel()
        self._upstream.close_idle()

    def _enqueue(self, origin: Origin, rids: list[str], heard: "asyncio.Future[None]") -> None:
        if self._is_closed:
            heard.set_result(None)
            return
        lane = self._lanes.setdefault(origin, _Lane())
        lane.queue.append((rids, heard))
        if len(lane.tasks) < LANE_WIDTH:
            task = asyncio.get_running_loop().create_task(self._run(origin, lane), name="aborts")
            lane.tasks.add(task)

    async def _run(self, origin: Origin, lane: "_Lane") -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while lane.queue:
                rids, heard = lane.queue.popleft()
                try:
                    for rid in rids:
                        await self._tell(origin, rid)
                finally:
                    if not heard.done():
                        heard.set_result(None)
        finally:
            lane.tasks.discard(task)
            if not lane.tasks and not lane.queue:
                del self._lanes[origin]

    async def _tell(self, origin: Origin, rid: str) -> None:
        call = Call(
            method="POST",
            path="/abort_request",
            target=b"/abort_request",
            headers=[(b"content-type", b"application/json")],
            body=msgspec.json.encode({"rid": rid}),
            request_id=rid,
        )
        try:
            reply = await self._upstream.send(origin, call)
            await reply.aclose()
        except HttpError as error:
            _log.info("event=abort_not_heard worker=%s rid=%s reason=%r", origin, rid, error.message)


class _Lane:
    __slots__ = ("queue", "tasks")

    def __init__(self) -> None:
        self.queue: deque[tuple[list[str], asyncio.Future[None]]] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
