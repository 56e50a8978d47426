"""What the prober asks, what it makes of the answers, and that it disturbs nobody."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from espalier.router.health import Signal, State
from espalier.router.prober import Prober
from espalier.router.workers import Worker, WorkerPool
from tests.router.running import DEADLINE_S, closed_port, run, until, url_of
from tests.router.scripted import answering, reply, scripted_worker
from tests.router.telling import OK, UNREADY, Telling, versioned


def pool_of(*urls: str) -> WorkerPool:
    pool = WorkerPool(failure_threshold=2, success_threshold=2)
    for url in urls:
        pool.add(url)
    return pool


def kill(pool: WorkerPool) -> None:
    for worker in pool:
        for _ in range(2):
            pool.report(worker, Signal.CONNECT_FAILED)


def states(pool: WorkerPool) -> list[State]:
    return [worker.health.state for worker in pool]


def outcome(worker: Worker) -> Signal | None:
    return worker.last_probe.outcome if worker.last_probe else None


def probe_until(
    pool: WorkerPool,
    condition: Callable[[], bool],
    *,
    interval_s: float = 0.01,
    timeout_s: float = DEADLINE_S,
    health_timeout_s: float = DEADLINE_S,
) -> None:
    """Probe the workers of `pool` until `condition` holds."""
    prober = Prober(pool, interval_s=interval_s, timeout_s=timeout_s, health_timeout_s=health_timeout_s)

    async def wait() -> None:
        async with _probing(prober):
            await asyncio.to_thread(until, condition)

    run(wait())


@contextlib.asynccontextmanager
async def _probing(prober: Prober) -> AsyncIterator[None]:
    task = asyncio.create_task(prober.run())
    yield
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


def test_worker_that_is_ready_is_healthy_and_its_version_is_known() -> None:
    telling = Telling(ready=OK, model_info=versioned("7"))
    with scripted_worker(telling) as worker:
        pool = pool_of(worker)
        probe_until(pool, lambda: states(pool) == [State.HEALTHY])
        assert pool.newest_weight_version == "7"
    assert telling.asked[:2] == ["/ready", "/model_info"]
    assert set(telling.asked) == {"/ready", "/model_info"}


def test_older_worker_is_asked_for_its_health_and_by_the_older_path_for_its_version() -> None:
    telling = Telling(health=OK, get_weight_version=versioned("7"))
    with scripted_worker(telling) as worker:
        pool = pool_of(worker)
        probe_until(pool, lambda: states(pool) == [State.HEALTHY])
        assert pool.newest_weight_version == "7"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"weight_version": null}', b"\xff", b"[" * 100_000])
def test_worker_that_tells_no_version_is_healthy(body: bytes) -> None:
    with scripted_worker(Telling(ready=OK, model_info=reply(body))) as worker:
        pool = pool_of(worker)
        probe_until(pool, lambda: states(pool) == [State.HEALTHY])
        assert pool.newest_weight_version is None


@pytest.mark.parametrize("status", ["404 Not Found", "401 Unauthorized", "429 Too Many Requests"])
def test_worker_that_answers_but_knows_no_probes_serves(status: str) -> None:
    with scripted_worker(answering(reply(status=status))) as worker:
        pool = pool_of(worker)
        probe_until(pool, lambda: states(pool) == [State.HEALTHY])


def test_worker_that_is_not_ready_and_answers_pings_is_paused() -> None:
    telling = Telling(ready=UNREADY, ping=OK)
    with scripted_worker(telling) as worker:
        pool = pool_of(worker)
        probe_until(pool, lambda: states(pool) == [State.PAUSED])
        telling.replies = {"/ready": OK}
        probe_until(pool, lambda: states(pool) == [State.HEALTHY])
    assert "/health" not in telling.asked


def test_paused_worker_that_was_marked_unhealthy_meanwhile_is_still_paused() -> None:
    telling = Telling(ready=UNREADY, ping=UNREADY)
    with scripted_worker(telling) as worker:
        pool = pool_of(worker)
        (only,) = pool
        pool.report(only, Signal.CALL_OK)
        pool.report(only, Signal.PAUSED)
        probe_until(pool, lambda: telling.asked.count("/ping") >= 3)
        assert only.health.state is State.PAUSED
    assert "/health" not in telling.asked


def test_worker_that_is_ready_in_no_way_is_dead_and_its_health_is_asked_with_patience() -> None:
    telling = Telling(ready=UNREADY, ping=UNREADY, health=UNREADY)
    with scripted_worker(telling) as worker:
        pool = pool_of(worker)
        probe_until(pool, lambda: states(pool) == [State.DEAD])
        (only,) = pool
        assert only.last_probe is not None
        assert only.last_probe.outcome is Signal.PROBE_FAILED
        assert "does not serve: /health is 503" in only.last_probe.detail


def test_worker_that_was_marked_unhealthy_and_generates_is_healthy() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        if request.startswith(b"GET /health "):
            asleep.wait(0.5)
        client.sendall(UNREADY if request.startswith((b"GET /ready ", b"GET /ping ")) else OK)
        return True

    asleep = threading.Event()
    with scripted_worker(script) as worker:
        pool = pool_of(worker)
        probe_until(pool, lambda: states(pool) == [State.HEALTHY], timeout_s=0.2)


def test_older_worker_that_tells_its_version_but_does_not_generate_is_paused() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        if request.startswith(b"GET /health "):
            return client.recv(1) != b""
        known = request.startswith(b"GET /model_info ")
        client.sendall(versioned("1") if known else reply(status="404 Not Found"))
        return True

    with scripted_worker(script) as worker:
        pool = pool_of(worker)
        probe_until(pool, lambda: states(pool) == [State.PAUSED], timeout_s=0.3)


def test_dead_worker_revives_once_it_answers_probes_in_a_row() -> None:
    telling = Telling(ready=OK)
    with scripted_worker(telling) as worker:
        pool = pool_of(worker)
        kill(pool)
        probe_until(pool, lambda: states(pool) == [State.HEALTHY])
    assert telling.asked.count("/ready") >= 4, "two to revive as a suspect, two more to be healthy"


def test_worker_that_answers_no_probe_does_not_keep_others_dead() -> None:
    with (
        closed_port() as refusing,
        scripted_worker(lambda client, _: client.recv(1) != b"") as silent,
        scripted_worker(answering(b"no HTTP\r\n\r\n")) as odd,
        scripted_worker(Telling(ready=OK)) as ready,
    ):
        pool = pool_of(url_of(refusing), silent, odd, ready)
        kill(pool)
        probe_until(pool, lambda: states(pool) == [State.DEAD] * 3 + [State.HEALTHY])


def test_worker_whose_host_is_unknown_is_found_dead() -> None:
    pool = pool_of("http://nowhere.invalid:1")
    probe_until(pool, lambda: states(pool) == [State.DEAD], interval_s=3600)


def test_worker_that_refuses_and_gets_no_calls_is_found_dead() -> None:
    with closed_port() as refusing:
        pool = pool_of(url_of(refusing))
        probe_until(pool, lambda: states(pool) == [State.DEAD])
        (worker,) = pool
        assert worker.last_probe is not None
        assert (worker.last_probe.outcome, worker.last_probe.took_s >= 0) == (Signal.CONNECT_FAILED, True)
        assert "took no connection" in worker.last_probe.detail


def test_silent_worker_is_found_dead_unless_it_answers_calls() -> None:
    with scripted_worker(lambda client, _: client.recv(1) != b"") as worker:
        pool = pool_of(worker)
        (only,) = pool
        seen: set[State] = set()

        def busy() -> bool:
            pool.report(only, Signal.CALL_OK)
            seen.add(only.health.state)
            return outcome(only) is Signal.PROBE_FAILED and len(failures) >= 3

        failures: set[float] = set()

        def watch() -> bool:
            if only.last_probe is not None:
                failures.add(only.last_probe.ended_at)
            return busy()

        probe_until(pool, watch, timeout_s=0.05)
        assert State.DEAD not in seen
        probe_until(pool, lambda: only.health.state is State.DEAD, timeout_s=0.05)


def test_worker_that_joins_is_probed_at_once_and_one_that_left_never_again() -> None:
    telling = Telling(ready=OK)
    with scripted_worker(telling) as url:
        pool = pool_of()
        prober = Prober(pool, interval_s=0.01, timeout_s=DEADLINE_S)

        async def test() -> None:
            async with _probing(prober):
                await asyncio.sleep(0)
                worker, _ = pool.add(url)
                await asyncio.to_thread(until, lambda: outcome(worker) is Signal.PROBE_OK)
                pool.remove(url)
                await asyncio.to_thread(until, lambda: prober.watched == 0)
                before = len(telling.asked)
                again, _ = pool.add(url)
                await asyncio.to_thread(until, lambda: outcome(again) is Signal.PROBE_OK)
                assert len(telling.asked) >= before + 2

        run(test())


def test_newer_version_has_the_others_read_at_once_and_a_late_one_read_again_soon() -> None:
    tellings = [Telling(ready=OK, model_info=versioned("1")) for _ in range(3)]
    with contextlib.ExitStack() as running:
        pool = pool_of(*(running.enter_context(scripted_worker(telling)) for telling in tellings))

        def versions() -> list[str | None]:
            return [worker.weight_version for worker in pool]

        async def test() -> None:
            async with _probing(Prober(pool, interval_s=3600, timeout_s=DEADLINE_S)):
                await asyncio.to_thread(until, lambda: versions() == ["1"] * 3)
                for telling in tellings[:2]:
                    telling.replies = {"/ready": OK, "/model_info": versioned("2")}
                pool.note_weight_version(next(iter(pool)), "2")
                await asyncio.to_thread(until, lambda: states(pool)[1:] == [State.HEALTHY, State.STALE])
                tellings[2].replies = tellings[0].replies
                await asyncio.to_thread(until, lambda: versions() == ["2"] * 3)
                assert states(pool) == [State.HEALTHY] * 3

        run(test())


def test_outcome_of_a_probe_that_was_overtaken_by_a_pause_is_not_used() -> None:
    pool = pool_of()
    asked, told = threading.Event(), threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        if request.startswith(b"GET /ready ") and not asked.is_set():
            asked.set()
            told.wait(DEADLINE_S)
        client.sendall(OK)
        return True

    with scripted_worker(script) as url:
        worker, _ = pool.add(url)

        async def test() -> None:
            async with _probing(Prober(pool, interval_s=3600, timeout_s=DEADLINE_S)):
                await asyncio.to_thread(asked.wait, DEADLINE_S)
                pool.report(worker, Signal.PAUSED)
                told.set()
                await asyncio.to_thread(until, lambda: outcome(worker) is Signal.PROBE_OK)
                assert worker.health.is_paused

        run(test())


def test_version_that_was_told_while_it_was_being_read_is_kept() -> None:
    asked, told = threading.Event(), threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        if request.startswith(b"GET /model_info "):
            asked.set()
            told.wait(DEADLINE_S)
        client.sendall(versioned("1"))
        return True

    with scripted_worker(script) as url:
        pool = pool_of(url)
        (worker,) = pool

        async def test() -> None:
            async with _probing(Prober(pool, interval_s=3600, timeout_s=DEADLINE_S)):
                await asyncio.to_thread(asked.wait, DEADLINE_S)
                pool.note_weight_version(worker, "2")
                told.set()
                await asyncio.to_thread(until, lambda: outcome(worker) is Signal.PROBE_OK)
                assert worker.weight_version == "2"

        run(test())


def test_connections_of_a_probe_are_closed_after_it() -> None:
    closed = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(OK)
        if request.startswith(b"GET /get_weight_version ") and not client.recv(1):
            closed.set()
        return True

    with scripted_worker(script) as worker:
        probe_until(pool_of(worker), closed.is_set, interval_s=3600)


def test_key_of_a_worker_is_sent_with_its_probes() -> None:
    asked: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        asked.append(request)
        return answering(OK)(client, request)

    with scripted_worker(script) as url:
        pool = WorkerPool()
        pool.add(url, api_key="secret")
        probe_until(pool, lambda: len(asked) >= 2)
    assert all(b"authorization: Bearer secret\r\n" in request for request in asked)


def test_probes_at_once_are_bounded() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def script(client: socket.socket, request: bytes) -> bool:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        released.wait(0.02)
        with lock:
            now -= 1
        return answering(OK)(client, request)

    released = threading.Event()
    with scripted_worker(script) as url:
        pool = pool_of(*(f"{url}/{number}" for number in range(20)))
        prober = Prober(pool, interval_s=3600, timeout_s=DEADLINE_S, max_concurrent=4)

        async def test() -> None:
            async with _probing(prober):
                await asyncio.to_thread(until, lambda: states(pool) == [State.HEALTHY] * 20)

        run(test())
    assert 1 < most <= 4


# With the whole router, and workers that behave like real ones.
