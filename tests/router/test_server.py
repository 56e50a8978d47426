"""The router as a process: its socket, its announcement, its end."""

import resource
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from espalier.errors import ConfigError
from espalier.router.server import MAX_FILES, listen
from tests.router.processes import REPOSITORY, ended, finished, router_process
from tests.router.running import url_of
from tests.router.scripted import answering, reply, scripted_worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_router_with_status_0_after_its_calls(number: signal.Signals) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        asked.set()
        assert go_on.wait(20)
        return answering(reply(b"done"))(client, request)

    answers: list[str] = []
    with scripted_worker(script) as worker, router_process("--worker-urls", worker) as (process, url):
        calling = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/generate", timeout=20, trust_env=False).text)
        )
        calling.start()
        assert asked.wait(20)
        process.send_signal(number)
        go_on.set()
        finished(process)
        calling.join(20)
    assert answers == ["done"]


@pytest.mark.parametrize("grace_period", ["0", "0.3"])
def test_call_that_outlives_the_grace_period_is_503_with_retry_after(grace_period: str) -> None:
    asked = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        asked.set()
        return client.recv(1) != b""

    answers: list[httpx.Response] = []
    flags = ("--shutdown-grace-period-secs", grace_period)
    with scripted_worker(script) as worker, router_process("--worker-urls", worker, *flags) as (process, url):
        calling = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/generate", timeout=20, trust_env=False))
        )
        calling.start()
        assert asked.wait(20)
        ended(process, signal.SIGTERM)
        calling.join(20)
    (answer,) = answers
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["message"] == "The router is shutting down"


def test_second_router_on_a_port_ends_with_one_sentence_and_status_2() -> None:
    with router_process() as (first, url):
        port = url.rpartition(":")[2]
        command = [sys.executable, "-m", "espalier", "router", "--host", "127.0.0.1", "--port", port]
        second = subprocess.run(
            [*command, "--middleware", "none"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 2
        (line,) = second.stderr.splitlines()
        assert line.startswith(f"espalier router: cannot listen on 127.0.0.1:{port}: Address already in use")
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        ended(first, signal.SIGTERM)


def test_port_is_taken_by_one() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"
        ):
            listen("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    with listen("127.0.0.1", port):
        pass


def test_port_that_a_closed_connection_still_haunts_can_be_taken() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            first.accept()[0].close()
            assert client.recv(1) == b""
    with listen("127.0.0.1", port) as again:
        assert url_of(again).endswith(f":{port}")


def test_sockets_of_the_next_protocol_version_are_listened_on() -> None:
    with listen("::1", 0) as listener:
        assert listener.family == socket.AF_INET6


@pytest.mark.parametrize("host", ["203.0.113.1", "nowhere.invalid"])
def test_address_that_is_not_ours_is_told(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot listen on {host}:1: .*; --host and --port choose"):
        listen(host, 1)


def test_process_may_open_as_many_files_as_the_system_lets_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with router_process() as (process, _):
            raised = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            ended(process, signal.SIGTERM)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised == (MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES), hard)
