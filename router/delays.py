"""Many delays of the same length, on one timer.

An event loop's timer costs several microseconds to set and to cancel, which adds up when each call sets two
and nearly none expires. Delays of equal length expire in the order they were set, so a dict in that order and
one timer for its first entry do the same for a dict insertion and a deletion.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class DelayQueue(Generic[T]):
    """Calls `expire(item)` once an item has been in the queue for `delay_s`, unless it was taken out."""

    def __init__(self, delay_s: float, expire: Callable[[T], None]) -> None:
        self.delay_s = delay_s
        self._expire = expire
        self._due_s: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: T, loop: asyncio.AbstractEventLoop) -> None:
        """Put an item in; it must be hashable and not be in already."""
        self._due_s[item] = loop.time() + self.delay_s
        if self._timer is None:
            self._timer = loop.call_later(self.delay_s, self._run, loop)

    def discard(self, item: T) -> None:
        """Take an item out, if it is still in."""
        self._due_s.pop(item, None)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        self._timer = None
        while self._due_s:
            item, due_s = next(iter(self._due_s.items()))
            if due_s > now_s:
                self._timer = loop.call_later(due_s - now_s, self._run, loop)
                return
            del self._due_s[item]
            self._expire(item)
