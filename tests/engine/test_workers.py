import os
import time
from pathlib import Path

import httpx
import pytest

from .environment import prepare
from .stand_in import LAUNCH_AND_DIE, write_scripts
from .workers import WorkerFailed, running_workers

GONE_DEADLINE_S = 10.0


def is_running(pid: int) -> bool:
    """Whether the process runs; one that ended and only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_are_ready_on_ports_of_their_own_and_stop_with_their_children(tmp_path: Path) -> None:
    environment = prepare(tmp_path / "root", write_scripts(tmp_path / "scripts"))
    with running_workers(environment, environment.models, log_folder=tmp_path) as workers:
        assert len({worker.url for worker in workers}) == 2
        for worker in workers:
            assert httpx.get(f"{worker.url}/ready", trust_env=False).text == "up\n"
        children = [int((worker.model / "child").read_text(encoding="utf-8")) for worker in workers]
        assert all(is_running(child) for child in children)
    assert all(worker.process.returncode is not None for worker in workers)
    deadline = time.monotonic() + GONE_DEADLINE_S
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline
        os.sched_yield()


def test_worker_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    scripts = write_scripts(tmp_path / "scripts", launch=LAUNCH_AND_DIE)
    environment = prepare(tmp_path / "root", scripts)
    with (
        pytest.raises(WorkerFailed, match=r"(?s)ended with 4; .*the model cannot be loaded"),
        running_workers(environment, environment.models[:1], log_folder=tmp_path),
    ):
        pass
