"""Real SGLang workers as processes: started on free ports, awaited, and stopped with all their children."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from .environment import EngineEnvironment

START_DEADLINE_S = 100.0
"""Two workers take about 25 s on two cores; the rest is for a busy machine."""

STOP_GRACE_S = 2.0
"""SGLang drains for some 10 s even when idle; after this long, its processes are killed."""

_POLL_INTERVAL_S = 0.1
_LOG_TAIL_CHARS = 2000


class WorkerFailed(Exception):
    """A worker did not come up; the message holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWorker:
    """One running SGLang server."""

    url: str
    model: Path
    log: Path
    process: "subprocess.Popen[bytes]"

    def wait_until_ready(self, *, deadline: float) -> None:
        """Return once the worker answers; `deadline` is in `time.monotonic()` seconds.

        Raises: WorkerFailed where it dies or the deadline passes.
        """
        with httpx.Client(trust_env=False, timeout=5) as client:
            while True:
                if self.process.poll() is not None:
                    raise self._failed(f"ended with {self.process.returncode}")
                with contextlib.suppress(httpx.TransportError):
                    if client.get(f"{self.url}/ready").status_code == 200:
                        return
                if time.monotonic() > deadline:
                    raise self._failed(f"was not ready within {START_DEADLINE_S:.0f} s")
                time.sleep(_POLL_INTERVAL_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker and all its children. Harmless when they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _failed(self, how: str) -> WorkerFailed:
        tail = self.log.read_text(errors="replace")[-_LOG_TAIL_CHARS:]
        return WorkerFailed(f"the SGLang worker at {self.url} {how}; the end of {self.log}:\n{tail}")


@contextlib.contextmanager
def running_workers(
    environment: EngineEnvironment, models: Sequence[Path], *, log_folder: Path
) -> Iterator[tuple[EngineWorker, ...]]:
    """Run one worker for each of `models` until the block ends.

    Raises: WorkerFailed where one does not come up.
    """
    with contextlib.ExitStack() as on_exit:
        workers: list[EngineWorker] = []
        on_exit.callback(_stop, workers)
        for index, (model, port) in enumerate(zip(models, _free_ports(len(models)), strict=True)):
            log = log_folder / f"worker-{index}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    environment.command(model=model, port=port),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            workers.append(
                EngineWorker(url=f"http://127.0.0.1:{port}", model=model, log=log, process=process)
            )
        deadline = time.monotonic() + START_DEADLINE_S
        for worker in workers:
            worker.wait_until_ready(deadline=deadline)
        yield tuple(workers)


def _stop(workers: Sequence[EngineWorker]) -> None:
    for worker in workers:
        worker.signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_GRACE_S
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=max(0.0, deadline - time.monotonic()))
    for worker in workers:
        worker.signal(signal.SIGKILL)
        worker.process.wait()


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as sockets:
        held = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
