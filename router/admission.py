"""Bounds on how many calls are in the router: so many at work, so many waiting for their turn, so long.

*Invariant*: a place that becomes free goes to the call that has waited longest; nobody passes those who wait.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from ..calls import Call
from ..errors import QueueTimeout, TooManyCalls
from .course import in_a_task
from .tally import Tally

TURN_RETRY_AFTER_S: Final = 1
"""What a client that was not let in is told to wait: places become free all the time."""


class Withdrawn(Exception):
    """The call was aborted before it had its turn."""


class Admission:
    """Lets calls in, `max_concurrent` at a time."""

    def __init__(self, *, max_concurrent: int, queue_size: int, queue_timeout_s: float, tally: Tally) -> None:
        """Let up to `queue_size` calls wait, each up to `queue_timeout_s`."""
        self._max_concurrent = max_concurrent
        self._queue_size = queue_size
        self._queue_timeout_s = queue_timeout_s
        self._tally = tally
        self._inside = 0
        self._waiting: dict[asyncio.Future[None], Call] = {}

    async def enter(self, call: Call) -> None:
        """Wait for a place, which `leave` gives back.

        Raises: TooManyCalls, QueueTimeout, each with Retry-After; Withdrawn where `withdraw` names the call.
        """
        if self._inside < self._max_concurrent:
            self._inside += 1
            return
        if self._tally.waiting >= self._queue_size:
            self._tally.refused["queue_full"] += 1
            raise TooManyCalls(
                f"{self._inside} calls are at work and {self._tally.waiting} wait, which is as many as may;"
                " --max-concurrent-requests and --queue-size raise the limits",
                retry_after_s=TURN_RETRY_AFTER_S,
            )
        loop = asyncio.get_running_loop()
        began_s, turn = loop.time(), loop.create_future()
        self._waiting[turn] = call
        self._tally.waiting += 1
        try:
            await in_a_task()
            async with asyncio.timeout(self._queue_timeout_s):
                await turn
        except TimeoutError:
            self._tally.refused["queue_timeout"] += 1
            self._give_up(turn)
            raise QueueTimeout(
                f"The call waited {self._queue_timeout_s:g} s for its turn (--queue-timeout-secs) and was not"
                " begun",
                retry_after_s=TURN_RETRY_AFTER_S,
            ) from None
        except asyncio.CancelledError:
            self._give_up(turn)
            raise
        finally:
            del self._waiting[turn]
            self._tally.waiting -= 1
            self._tally.queue_waits.add([loop.time() - began_s])

    def withdraw(self, is_meant: Callable[[Call], bool]) -> int:
        """Let the calls that wait and are meant wait no longer; return how many that were."""
        meant = [turn for turn, call in self._waiting.items() if not turn.done() and is_meant(call)]
        for turn in meant:
            turn.set_exception(Withdrawn())
        return len(meant)

    def leave(self) -> None:
        """Give the place to the next one who waits."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)
                return
        self._inside -= 1

    def _give_up(self, turn: "asyncio.Future[None]") -> None:
        """Give a place that came in the same moment to the next."""
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self.leave()
