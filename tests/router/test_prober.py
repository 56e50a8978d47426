"""Dead workers are found again, and live ones left alone."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable

from espalier.router.health import Signal, State
from espalier.router.prober import Prober
from espalier.router.workers import WorkerPool
from tests.router.running import closed_port, router, run, until, url_of, worker_of
from tests.router.scripted import answering, reply, scripted_worker


def dead_workers(*urls: str) -> WorkerPool:
    pool = WorkerPool(failure_threshold=1)
    for url in urls:
        pool.report(pool.add(url)[0], Signal.CONNECT_FAILED)
    return pool


def probe_until(pool: WorkerPool, condition: Callable[[], bool]) -> None:
    """Probe the workers of `pool` until `condition` holds."""

    async def wait() -> None:
        async with _probing(pool):
            await asyncio.to_thread(until, condition)

    run(wait())


@contextlib.asynccontextmanager
async def _probing(pool: WorkerPool) -> AsyncIterator[None]:
    task = asyncio.create_task(Prober(pool, interval_s=0.01, timeout_s=0.2).run())
    yield
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


def states(pool: WorkerPool) -> list[State]:
    return [worker.health.state for worker in pool]


def test_dead_worker_revives_as_a_suspect_once_it_is_ready() -> None:
    asked: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        asked.append(request)
        return answering(reply())(client, request)

    with scripted_worker(script) as worker:
        pool = dead_workers(worker)
        probe_until(pool, lambda: states(pool) == [State.SUSPECT])
    assert [request.split(b" HTTP")[0] for request in asked] == [b"GET /ready"]


def test_worker_that_knows_no_ready_is_asked_for_its_health() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        knows = request.startswith(b"GET /health ")
        client.sendall(reply(status="200 OK" if knows else "404 Not Found"))
        return True

    with scripted_worker(script) as worker:
        pool = dead_workers(worker)
        probe_until(pool, lambda: states(pool) == [State.SUSPECT])


def test_worker_that_is_not_ready_stays_dead() -> None:
    asked: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        asked.append(request)
        return answering(reply(status="503 Loading"))(client, request)

    with scripted_worker(script) as worker:
        pool = dead_workers(worker)
        probe_until(pool, lambda: len(asked) >= 3)
        assert states(pool) == [State.DEAD]
    assert all(request.startswith(b"GET /ready ") for request in asked)


def test_worker_that_answers_no_probe_does_not_keep_others_dead() -> None:
    with (
        closed_port() as refusing,
        scripted_worker(lambda client, _: client.recv(1) != b"") as silent,
        scripted_worker(answering(b"no HTTP\r\n\r\n")) as odd,
        scripted_worker(answering(reply())) as ready,
    ):
        pool = dead_workers(url_of(refusing), "http://nowhere.invalid:1", silent, odd, ready)
        probe_until(pool, lambda: states(pool) == [State.DEAD] * 4 + [State.SUSPECT])


def test_live_workers_are_not_probed() -> None:
    asked: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        asked.append(request)
        return answering(reply())(client, request)

    with scripted_worker(script) as alive, scripted_worker(answering(reply())) as dead:
        pool = dead_workers(dead)
        pool.add(alive)
        probe_until(pool, lambda: State.DEAD not in states(pool))
    assert asked == []


def test_connection_of_a_probe_is_closed_after_it() -> None:
    closed = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(reply())
        if not client.recv(1):
            closed.set()
        return False

    with scripted_worker(script) as worker:
        pool = dead_workers(worker)
        probe_until(pool, closed.is_set)


def test_long_call_to_a_revived_worker_does_not_inherit_the_probes_timeout() -> None:
    released = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        if not request.startswith(b"GET /ready "):
            released.wait(0.6)
        return answering(reply(b"alive"))(client, request)

    with (
        closed_port() as port,
        router(url_of(port), health_check_interval_secs=0.05, health_check_timeout_secs=0.2) as client,
    ):
        assert [client.post("/generate").status_code for _ in range(4)] == [502, 502, 502, 503]
        with scripted_worker(script, port):
            until(lambda: worker_of(client)["status"] == "suspect")
            assert client.post("/generate").text == "alive"
            assert worker_of(client)["status"] == "healthy"
