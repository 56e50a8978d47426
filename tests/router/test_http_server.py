"""How the router ends: what runs may finish, what does not is broken off, and the process goes."""

import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

import httpx
import pytest

from espalier.router.app import create_app
from espalier.router.settings import RouterSettings
from tests.router.processes import finished, router_process
from tests.router.running import DEADLINE_S, serving, until
from tests.router.scripted import Script, answering, reply, scripted_worker

CALL = b"POST /generate HTTP/1.1\r\nhost: r\r\ncontent-length: 0\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Worker:
    """Streams one chunk, then waits for `go_on` before the second, or for its client to leave."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.was_asked = threading.Event()
        self.was_left = threading.Event()

    def stream(self, client: socket.socket, _: bytes) -> bool:
        client.sendall(STREAM_HEAD + b"5\r\nfirst\r\n")
        if self.go_on.wait(DEADLINE_S):
            client.sendall(b"4\r\nlast\r\n0\r\n\r\n")
        return True

    def hang(self, client: socket.socket, _: bytes) -> bool:
        return self._wait_for_end(client)

    def stream_and_hang(self, client: socket.socket, _: bytes) -> bool:
        client.sendall(STREAM_HEAD + b"5\r\nfirst\r\n")
        return self._wait_for_end(client)

    def _wait_for_end(self, client: socket.socket) -> bool:
        self.was_asked.set()
        with contextlib.suppress(OSError):
            assert client.recv(1) == b""
        self.was_left.set()
        return False


@contextlib.contextmanager
def calling(
    script: Script, *flags: str, request: bytes = CALL
) -> Iterator[tuple["subprocess.Popen[str]", socket.socket, int]]:
    """Run a router in front of `script`; yields the process, a socket with a call on it, and the port."""
    with scripted_worker(script) as worker, router_process("--worker-urls", worker, *flags) as (process, url):
        port = httpx.URL(url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
            client.sendall(request)
            yield process, client, port


def read_until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        chunk = client.recv(65536)
        assert chunk, received
        received += chunk
    return received


def rest_of(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stream_in_flight_goes_on_to_its_last_byte_while_nobody_new_is_let_in(number: signal.Signals) -> None:
    worker = Worker()
    with calling(worker.stream, "--shutdown-grace-period-secs", "60") as (process, client, port):
        read_until(client, b"first")
        process.send_signal(number)
        until(lambda: refuses(port))
        worker.go_on.set()
        assert rest_of(client).endswith(b"4\r\nlast\r\n0\r\n\r\n")
        told = finished(process)
    assert "event=router_stopping calls=1 grace_s=60" in told
    assert "event=calls_broken_off" not in told


def test_reply_that_comes_during_shutdown_closes_its_connection() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        asked.set()
        assert go_on.wait(DEADLINE_S)
        return answering(reply(b"done"))(client, request)

    with calling(script, "--shutdown-grace-period-secs", "60") as (process, client, port):
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as idle:
            idle.sendall(b"GET /health HTTP/1.1\r\nhost: r\r\n\r\n")
            read_until(idle, b"\r\n\r\nOK")
            assert asked.wait(DEADLINE_S)
            process.send_signal(signal.SIGTERM)
            assert rest_of(idle) == b"", "an idle connection is closed at once"
        go_on.set()
        answer = rest_of(client)
        finished(process)
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"done")


def test_stream_that_outlives_the_grace_period_is_broken_off_and_its_worker_freed() -> None:
    worker = Worker()
    with calling(worker.stream_and_hang, "--shutdown-grace-period-secs", "0.2") as (process, client, _):
        read_until(client, b"first")
        process.send_signal(signal.SIGTERM)
        assert not rest_of(client).endswith(b"0\r\n\r\n"), "a broken stream must not look whole"
        told = finished(process)
        assert worker.was_left.wait(DEADLINE_S)
    assert "event=calls_broken_off calls=1" in told
    assert "level=error" not in told


def test_second_signal_ends_at_once() -> None:
    worker = Worker()
    with calling(worker.hang, "--shutdown-grace-period-secs", "3600") as (process, client, port):
        assert worker.was_asked.wait(DEADLINE_S)
        process.send_signal(signal.SIGTERM)
        until(lambda: refuses(port))
        process.send_signal(signal.SIGTERM)
        assert rest_of(client).startswith(b"HTTP/1.1 503 ")
        finished(process, status=128 + signal.SIGTERM)
        assert worker.was_left.wait(DEADLINE_S)


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /generate HTTP/1.1\r\nhost: r\r\ncontent-length: 9\r\n\r\nhalf",
        b"POST /add_worker HTTP/1.1\r\nhost: r\r\ncontent-length: 9\r\n\r\nhalf",
        b"POST /flush_cache HTTP/1.1\r\nhost: r\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_whatever_outlives_the_grace_period_is_told_503(request_: bytes) -> None:
    flags = ("--shutdown-grace-period-secs", "0.2")
    with calling(Worker().hang, *flags, request=request_) as (process, client, port):
        # Another request on another connection: when it is answered, the first one has been taken in.
        assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert rest_of(client).startswith(b"HTTP/1.1 503 ")
        assert "level=error" not in finished(process)


def test_client_that_does_not_read_holds_up_nobody() -> None:
    with calling(answering(reply(b"x" * (16 << 20))), "--shutdown-grace-period-secs", "0.2") as (
        process,
        client,
        _,
    ):
        assert client.recv(1) == b"H"
        process.send_signal(signal.SIGTERM)
        finished(process)


def test_router_that_ends_is_alive_but_not_ready() -> None:
    app = create_app(RouterSettings(worker_urls=("http://127.0.0.1:9",), middleware=("none",)))
    with serving(app) as client:
        assert client.get("/readiness").status_code == 200
        app.stop()
        answer = client.get("/readiness")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert client.get("/health").status_code == 200


def test_metrics_have_a_port_of_their_own_where_one_is_asked_for() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    flags = ("--prometheus-port", str(port), "--api-key", "key", "--protect-metrics")
    with router_process(*flags) as (process, url), httpx.Client(trust_env=False) as client:
        until(lambda: not refuses(port))
        answer = client.get(f"http://127.0.0.1:{port}/metrics")
        assert (answer.status_code, "espalier_in_flight 0.0" in answer.text) == (200, True)
        assert client.get(f"http://127.0.0.1:{port}/generate").status_code == 404
        assert client.get(f"{url}/metrics").status_code == 401
        process.send_signal(signal.SIGTERM)
        finished(process)
        assert refuses(port)
