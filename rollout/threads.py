"""Plain functions beside the event loop: a bounded number at a time, each in a daemon thread."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from .problems import RewardFailed, RewardTimeout

MAX_THREADS: Final = min(32, (os.cpu_count() or 1) + 4)
"""Functions at a time: Python's own choice for its thread pool, a few above the cores for those that wait."""

MAX_GIVEN_UP: Final = 64
"""Threads that may be left behind in functions which do not end; no more are begun then."""

_slots: "WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]" = WeakKeyDictionary()
_given_up: set[threading.Thread] = set()


@contextlib.asynccontextmanager
async def thread_slot(what: str) -> AsyncIterator[None]:
    """Wait for one of the event loop's `MAX_THREADS` slots, and hold it for the block.

    Raises: RewardTimeout where so many earlier functions never ended that no more may begin; `what` names
    this one, for the message.
    """
    slots = _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(MAX_THREADS))
    async with slots:
        _given_up.difference_update([thread for thread in _given_up if not thread.is_alive()])
        if len(_given_up) >= MAX_GIVEN_UP:
            raise RewardTimeout(f"the {what} is not called: {len(_given_up)} earlier calls have not ended")
        yield


async def in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    """Return `function(*arguments)`, called in a daemon thread of its own.

    A function that never returns can be given up: unlike the threads of `asyncio.to_thread`, this one is
    waited for neither when the event loop closes nor when the process ends.

    Raises: what `function` raises; RewardFailed where that is SystemExit or the like.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    def run() -> None:
        result: Any = None
        problem: Exception | None = None
        try:
            result = function(*arguments)
        except StopIteration as error:  # a future cannot hold one
            problem = RewardFailed(f"the function raised {error!r}")
        except Exception as error:  # noqa: BLE001  it is raised where it is awaited
            problem = error
        except BaseException as error:  # noqa: BLE001  a thread's SystemExit would end nothing, silently
            problem = RewardFailed(f"the function raised {error!r}")
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
            loop.call_soon_threadsafe(settle, result, problem)

    thread = threading.Thread(target=run, name="espalier-plugin", daemon=True)
    thread.start()
    try:
        return await outcome
    except asyncio.CancelledError:
        _given_up.add(thread)
        raise
