"""Whether two expressions are equal, asked of processes beside us.

Invariant: a comparison ends within its time, whatever the expression, and holds up nobody but the one who
asked. sympy evaluates eagerly, inside C code that no thread can interrupt (`9^{9^{9^9}}`), so it runs in
processes that are killed when their time is over and replaced when somebody asks again.
"""

import asyncio
import atexit
import importlib.util
import json
import logging
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from ..threads import in_thread

COMPARISON_TIME_S: Final = 5.0
"""Seconds for one comparison: usual ones take a hundredth of it."""

START_TIME_S: Final = 60.0
"""Seconds for a process to load sympy: under one, on a machine with nothing else to do."""

MEMORY_BYTES: Final = 2 << 30
"""Address space of a process; sympy and its parser take a tenth of it."""

MAX_PROCESSES: Final = min(4, os.cpu_count() or 1)
"""Processes at a time: each keeps a core busy."""

MAX_EXPRESSION_CHARS: Final = 500
"""Longer expressions are no answers, and not compared."""

_WORKER: Final = Path(__file__).with_name("symbolic_worker.py")

_log = logging.getLogger(__name__)


class SymbolicPool:
    """Processes that compare expressions; they are started when needed and live on for the next pair."""

    def __init__(self, *, time_s: float = COMPARISON_TIME_S, processes: int = MAX_PROCESSES) -> None:
        self._time_s = time_s
        self._processes = processes
        self._idle: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    async def is_equal(self, answer: str, expected: str) -> bool:
        """Tell whether the two are shown to be equal. Waits for a free process without any limit.

        An expression that cannot be read, is too long, or takes more than its time or memory is not.
        """
        if max(len(answer), len(expected)) > MAX_EXPRESSION_CHARS:
            return False
        slots = self._slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._processes))
        async with slots:
            return bool(await in_thread(self._compare, answer, expected))

    def close(self) -> None:
        """End the idle processes."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            _end(process)

    def _compare(self, answer: str, expected: str) -> bool:
        process = self._take()
        if process is None:
            return False
        verdict = None
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps([answer, expected]) + "\n")
            process.stdin.flush()
            verdict = _read(process, self._time_s)
        except OSError:  # it ended in between
            pass
        if verdict is None:
            _end(process)
            return False
        with self._lock:
            self._idle.append(process)
        return verdict["equal"]

    def _take(self) -> "subprocess.Popen[str] | None":
        with self._lock:
            if self._idle:
                return self._idle.pop()
        process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-P", str(_WORKER), str(self._time_s), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if _read(process, START_TIME_S) is None:
            _end(process)
            _log.warning("event=symbolic_worker_failed status=%s", process.returncode)
            return None
        return process


def is_installed() -> bool:
    """Tell whether expressions can be compared here: it takes the extra `math`."""
    return importlib.util.find_spec("math_verify") is not None


def _read(process: "subprocess.Popen[str]", time_s: float) -> dict[str, bool] | None:
    """Return the next message of the process, or None where it has ended or the time is over."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    if not poll.poll(time_s * 1000):
        return None
    line = process.stdout.readline()
    if not line.endswith("\n"):
        return None
    message: dict[str, bool] = json.loads(line)
    return message


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


symbolic_pool = SymbolicPool()
"""The processes that the rewards of this process share."""

atexit.register(symbolic_pool.close)
