"""Child processes of the demo: started together, watched, and stopped whatever happens.

Each child leads a process group of its own, so that Ctrl-C reaches it through us and not twice, and so that
what it started itself (SGLang starts three processes) ends with it. Its output goes to a log file.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import httpx

from .errors import EspalierError

STOP_GRACE_S: Final = 10.0
"""How long a child may take to end after SIGTERM, before SIGKILL."""

POLL_INTERVAL_S: Final = 0.05
"""How often a starting child is asked whether it is ready."""

LOG_TAIL_LINES: Final = 5
"""How much of a dead child's log is shown."""


_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildDied(EspalierError):
    """A child process ended before it was told to. The message is one sentence for the user."""


class Child:
    """One running process."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start it.

        Raises: ChildDied where the program cannot be started at all.
        """
        self.name = name
        self._log = log
        with log.open("wb") as output:
            try:
                self._process = subprocess.Popen(  # noqa: S603  our own argv, no shell
                    argv,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=dict(environment),
                    start_new_session=True,
                )
            except OSError as error:
                raise ChildDied(f"{name} cannot be started: {error}") from None

    def wait_ready(self, url: str, timeout_s: float) -> None:
        """Return once `GET url` answers 200.

        Raises: ChildDied where the process ends, or is not ready in time.
        """
        deadline_s = time.monotonic() + timeout_s
        with httpx.Client(trust_env=False, timeout=5) as client:
            while time.monotonic() < deadline_s:
                self.check()
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(url).status_code == 200:
                        return
                time.sleep(POLL_INTERVAL_S)
        raise ChildDied(f"{self.name} was not ready after {timeout_s:g} s; its log: {self._log}")

    def check(self) -> None:
        """Check that the process lives.

        Raises: ChildDied with the end of its log where it does not.
        """
        status = self._process.poll()
        if status is None:
            return
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        told = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        tail = "".join(f"\n    {line}" for line in told[-LOG_TAIL_LINES:])
        raise ChildDied(f"{self.name} {how}; the end of its log {self._log}:{tail or ' (empty)'}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self, timeout_s: float) -> bool:
        """Tell whether the process has ended, waiting up to `timeout_s` for it."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


class Children:
    """Several processes with one end: leaving the block stops them all. For the main thread."""

    def __init__(self, *, stop_grace_s: float = STOP_GRACE_S) -> None:
        """Give children `stop_grace_s` seconds to end by themselves, in the end."""
        self._stop_grace_s = stop_grace_s
        self._children: list[Child] = []
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self.death: ChildDied | None = None
        """Why the watch interrupted us, if it did."""

    def __enter__(self) -> Self:
        """Begin with no children."""
        atexit.register(self._stop_undisturbed)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all children: SIGTERM first, SIGKILL after a grace period. No signal cuts this short.

        One that comes before the first line here ends this method, so the end of the process stops them too.
        """
        self._stop_undisturbed()
        atexit.unregister(self._stop_undisturbed)

    def _stop_undisturbed(self) -> None:
        ignored = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING_SIGNALS}
        try:
            self._stop()
        finally:
            for number, handler in ignored.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        for child in self._children:
            child.signal(signal.SIGTERM)
        deadline_s = time.monotonic() + self._stop_grace_s
        for child in self._children:
            child.wait(max(0.0, deadline_s - time.monotonic()))
            child.signal(signal.SIGKILL)
            child.wait(self._stop_grace_s)

    def start(self, name: str, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> Child:
        """Start a process; see `Child`."""
        child = Child(name, argv, log, environment)
        self._children.append(child)
        return child

    def watch(self, on_death: Callable[[], None], interval_s: float = 0.2) -> None:
        """From now on, call `on_death` in a thread when a child ends by itself; `death` then tells why."""

        def look() -> None:
            while not self._stopping.wait(interval_s):
                try:
                    for child in self._children:
                        child.check()
                except ChildDied as error:
                    self.death = error
                    on_death()
                    return

        self._watcher = threading.Thread(target=look, name="child-watch", daemon=True)
        self._watcher.start()
