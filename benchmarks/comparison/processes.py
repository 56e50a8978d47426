"""Processes on a core of their own, and what they cost: CPU time and memory of a process and its children."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

SEARCH_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin"
"""Debian keeps nginx where only root looks."""

STOP_WITHIN_S: Final = 5
"""How long a process may take to end when it is told to; then it is killed."""

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})
"""Everything here is on this machine: no process goes through a proxy."""


class Running:
    """A process that runs, and its children."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def cpu_s(self) -> float:
        """Return the CPU time used so far, in user and system mode."""
        ticks = 0
        for pid in self._tree():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICKS_PER_S

    def peak_memory_mib(self) -> float:
        """Return the most memory that was resident at a time, of each process, added up."""
        kib = 0
        for pid in self._tree():
            status = Path(f"/proc/{pid}/status").read_text()
            kib += int(status.partition("VmHWM:")[2].split()[0])
        return kib / 1024

    def last_words(self) -> str:
        """Return the end of what it printed."""
        return self._log.read_text(errors="replace")[-600:].strip()

    def _tree(self) -> list[int]:
        pids = [self._process.pid]
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        return pids


@contextlib.contextmanager
def running(
    command: list[str], *, core: int, log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run a process on one core until the block ends; what it prints goes to the file `log`."""
    environment = {name: value for name, value in os.environ.items() if name.lower() not in _PROXIES}
    environment |= variables or {}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Running(process, log)
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WITHIN_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the group is its own: what it left behind goes too


class CoreTime(NamedTuple):
    """What a core has done so far, in seconds: nothing, and everything together."""

    idle_s: float
    total_s: float

    def idle_share_since(self, before: "CoreTime") -> float:
        """Return the part of the time since `before` in which the core had nothing to do."""
        return (self.idle_s - before.idle_s) / max(self.total_s - before.total_s, 1e-9)


def core_time(core: int) -> CoreTime:
    """Return the core's account; the time that a hypervisor took away counts as spent."""
    lines = Path("/proc/stat").read_text().splitlines()
    fields = next(line.split()[1:9] for line in lines if line.startswith(f"cpu{core} "))
    seconds = [int(field) / _TICKS_PER_S for field in fields]
    return CoreTime(idle_s=seconds[3] + seconds[4], total_s=sum(seconds))


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
