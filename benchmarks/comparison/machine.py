"""Says what machine a figure is of."""

import os
import platform
import subprocess
from pathlib import Path

from .processes import SEARCH_PATH

ROOT = Path(__file__).resolve().parents[2]


def machine() -> str:
    """Return the processor, the number of cores, the kernel and Python, in a sentence's words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0))
    return (
        f"{model or platform.machine()}, {cores} cores, Linux {platform.release()},"
        f" Python {platform.python_version()}"
    )


def versions() -> dict[str, str]:
    """Return the versions of the programs that make the load."""
    return {
        "nginx": _told(["nginx", "-v"]).rpartition("/")[2],
        "wrk": _told(["wrk", "-v"]).partition(" [")[0].removeprefix("wrk "),
    }


def revision() -> str:
    """Return the commit that is measured, with a mark where files were changed since."""
    return _told(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]) or "of no commit"


def _told(command: list[str]) -> str:
    environment = os.environ | {"PATH": SEARCH_PATH}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return (done.stdout + done.stderr).partition("\n")[0].strip()
