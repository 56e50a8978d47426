"""Running a rollout from code that is not async: the event loop, and the garbage collector meanwhile."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

COLLECT_EVERY: Final = (50_000, 50, 100)
"""Allocations, and rounds, between looks at each generation of objects. With Python's own (700, 10, 10) it
walks over the samples of a batch, millions of numbers, again and again."""


def run_async(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run `coroutine` to its end, as `asyncio.run` does, and return its result.

    The main task's own result is None: when a Runner takes its signal handler off, Python puts the task into
    words, result and all, which took a second for a batch of 4,000 samples.
    """
    results: list[_T] = []

    async def keep_result() -> None:
        results.append(await coroutine)

    with collecting_rarely():
        asyncio.run(keep_result())
    return results[0]


class _RareCollection:
    """Sets the collector's thresholds for as long as anybody wants them so; rollouts may overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = gc.get_threshold()

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = gc.get_threshold()
                gc.set_threshold(*COLLECT_EVERY)

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                gc.set_threshold(*self._before)


_rare_collection = _RareCollection()


@contextlib.contextmanager
def collecting_rarely() -> Iterator[None]:
    """Let Python look for garbage in cycles less often in the block; it is the whole process that does."""
    _rare_collection.enter()
    try:
        yield
    finally:
        _rare_collection.leave()
