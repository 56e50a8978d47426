"""The demo as a user runs it: a process of its own, small, with simulated workers."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SMALL = ("--rollout-batch-size", "2", "--n-samples-per-prompt", "4", "--num-rollout", "2")
ENDLESS = ("--rollout-batch-size", "4", "--num-rollout", "100000")


@contextlib.contextmanager
def demo(folder: Path, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "espalier", "demo", "--output-dir", str(folder / "out"), *flags]
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: "subprocess.Popen[str]", words: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"the demo ended without saying {words!r}")


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in listed.stdout.split()]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_demo_writes_samples_and_metrics_and_stops_what_it_started(tmp_path: Path) -> None:
    with demo(tmp_path, *SMALL) as process:
        read_until(process, "ready after")
        started = children_of(process.pid)
        told, _ = process.communicate(timeout=100)
    assert process.returncode == 0, told
    assert len(started) == 3
    assert all(is_gone(pid) for pid in started)
    for words in (
        "step 2 of 2",
        "groups kept",
        "groups dropped",
        "mean reward",
        "truncated",
        "tree hit rate",
    ):
        assert words in told
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert (len(samples), len(metrics)) == (2 * 2 * 4, 2)
    for sample in samples:
        count = sample["response_length"]
        assert len(sample["loss_mask"]) == len(sample["rollout_log_probs"]) == count
        assert len(sample["tokens"]) > count > 0
        assert sample["status"] in ("completed", "truncated")
        assert sample["weight_versions"] == ["default"]
    rewards = {json.dumps(sample["reward"]) for sample in samples}
    assert len(rewards) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_interrupt_stops_everything_and_keeps_what_was_made(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path, *ENDLESS) as process:
        read_until(process, "step 2 of")
        started = children_of(process.pid)
        process.send_signal(number)
        read_until(process, "interrupted")
        read_until(process, "stopping the workers")
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "out/samples.jsonl").exists()
    assert len(started) == 3
    assert all(is_gone(pid) for pid in started)


@pytest.mark.parametrize("victim", [0, 2])
def test_child_that_dies_ends_the_demo_with_one_clear_sentence(tmp_path: Path, victim: int) -> None:
    with demo(tmp_path, *ENDLESS) as process:
        read_until(process, "step 1 of")
        started = children_of(process.pid)
        os.kill(started[victim], signal.SIGKILL)
        told, _ = process.communicate(timeout=60)
    name = ("worker 0", "worker 1", "the router")[victim]
    assert process.returncode == 1
    assert f"The demo stopped: {name} was killed by SIGKILL" in told
    assert "Traceback" not in told
    assert all(is_gone(pid) for pid in started)


def test_port_in_use_ends_the_demo_with_one_clear_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo(tmp_path, *SMALL, "--router-port", str(port)) as process:
            told, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt-data", "nowhere.jsonl"), "--prompt-data nowhere.jsonl: no such file"),
        (("--engine", "sglang"), "--engine sglang needs --model-path"),
        (("--engine-command", "run me"), "--engine-command must contain {port}"),
        (
            ("--engine-command", "run '{port}"),
            "--engine-command cannot be split into words: No closing quotation",
        ),
        (("--workers", "0"), "--workers 0: expected at least 1"),
        (("--router-port", "70000"), "--router-port 70000: expected 0 to 65535"),
        (("--output-dir", "/proc/nowhere"), "--output-dir /proc/nowhere"),
    ],
)
def test_wrong_setting_exits_with_2_before_anything_starts(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    with demo(tmp_path, *flags) as process:
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message in told
    assert "starting" not in told
