"""The `espalier worker` command as a process of its own."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from espalier.errors import ConfigError
from espalier.simulator.server import EXIT_DIED, bind
from tests.simulator.workers import BROKEN_OFF, counts, eventually

FLAGS = ("--port", "0", "--health-probe-s", "0", "--decode-step-s", "0.005", "--slice-s", "0.01")
LONG = {"max_new_tokens": 300, "ignore_eos": True}


@contextlib.contextmanager
def worker_process(*flags: str) -> "Iterator[tuple[subprocess.Popen[str], httpx.Client]]":
    command = [sys.executable, "-m", "espalier", "worker", *FLAGS, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            event, _, url = process.stdout.readline().strip().partition(" url=")
            assert event == "event=worker_ready"
            with httpx.Client(base_url=url, timeout=20) as client:
                yield process, client
        finally:
            process.kill()


def test_sigterm_drains_health_says_503_and_generate_still_serves() -> None:
    with worker_process() as (process, client), ThreadPoolExecutor() as pool:
        running = pool.submit(
            client.post, "/generate", json={"rid": "r", "input_ids": [50], "sampling_params": LONG}
        )
        eventually(lambda: counts(client, "r") is not None)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: client.get("/health").status_code == 503)
        short = {"input_ids": [51], "sampling_params": {"max_new_tokens": 1}}
        assert client.post("/generate", json=short).status_code == 200
        assert client.get("/ready").status_code == 503
        assert len(running.result().json()["output_ids"]) == 300
        assert process.wait(timeout=10) == 0


def test_drain_ends_after_its_time_with_aborts() -> None:
    with worker_process("--drain-s", "0.3") as (process, client), ThreadPoolExecutor() as pool:
        body = {"rid": "r", "input_ids": [50], "sampling_params": LONG | {"max_new_tokens": 9000}}
        running = pool.submit(client.post, "/generate", json=body)
        eventually(lambda: counts(client, "r") is not None)
        process.send_signal(signal.SIGTERM)
        assert running.result().json()["meta_info"]["finish_reason"]["type"] == "abort"
        assert process.wait(timeout=10) == 0


def test_request_that_kills_the_worker_ends_the_process_with_a_clear_line() -> None:
    with worker_process() as (process, client):
        with pytest.raises(BROKEN_OFF):
            client.post("/generate", json={"input_ids": [999999]})
        assert process.wait(timeout=10) == EXIT_DIED
        assert process.stderr is not None
        reason = process.stderr.read().strip()
        assert reason == "event=worker_died reason='token id 999999 is outside the vocabulary of 1500'"


def test_refusing_worker_listens_again_afterwards() -> None:
    with worker_process() as (_, client):
        client.post("/simulator/faults", json={"fault": "refuse", "calls": 1, "duration_s": 0.5})
        with pytest.raises(BROKEN_OFF):
            client.post("/generate", json={"input_ids": [50]})
        with pytest.raises(httpx.ConnectError):
            httpx.get(client.base_url)

        def listens() -> bool:
            try:
                return client.get("/ready").status_code == 200
            except httpx.ConnectError:
                return False

        eventually(listens)


def test_idle_connection_is_closed_after_the_keep_alive_time() -> None:
    with worker_process("--keep-alive-s", "1") as (_, client):
        assert client.base_url.port is not None
        with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=10) as connection:
            connection.sendall(b"GET /ready HTTP/1.1\r\nhost: worker\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            assert connection.recv(1) == b""
            assert 0.5 < time.monotonic() - began < 5


def test_port_in_use_is_one_clear_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind("127.0.0.1", port)


def test_unknown_host_is_one_clear_sentence() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on no\.such\.host\.invalid:0"):
        bind("no.such.host.invalid", 0)
