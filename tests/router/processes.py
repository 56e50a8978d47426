"""The router as a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@contextlib.contextmanager
def router_process(*flags: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run `espalier router` on a free port; yields the process and, once it is ready, its URL."""
    command = [sys.executable, "-m", "espalier", "router", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        [*command, "--middleware", "none", *flags],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        try:
            assert process.stdout is not None
            announced = process.stdout.readline()
            assert announced.startswith(
                ("event=router_ready url=http://127.0.0.1:", "event=router_ready url=https://127.0.0.1:")
            ), announced
            yield process, announced.strip().partition("url=")[2]
        finally:
            process.kill()


def ended(process: "subprocess.Popen[str]", number: signal.Signals) -> str:
    """End the process by a signal; return what it said to stderr, after checking that it ended well."""
    process.send_signal(number)
    return finished(process)


def finished(process: "subprocess.Popen[str]", status: int = 0) -> str:
    """Wait for the end of the process; return what it said to stderr, after checking how it ended."""
    _, told = process.communicate(timeout=30)
    assert process.returncode == status, told
    assert "Traceback" not in told
    return told
