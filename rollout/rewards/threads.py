"""Plain functions beside the event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any


async def in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    """Return `function(*arguments)`, called in a daemon thread of its own.

    A function that never returns can be given up: unlike the threads of `asyncio.to_thread`, this one is
    waited for neither when the event loop closes nor when the process ends.

    Raises: what `function` raises.
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
        result, problem = None, None
        try:
            result = function(*arguments)
        except Exception as error:  # noqa: BLE001  it is raised where it is awaited
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="espalier-reward", daemon=True).start()
    return await outcome
