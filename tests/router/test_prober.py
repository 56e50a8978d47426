"""What the prober asks, what it makes of the answers, and that it disturbs nobody."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest

from espalier.router.health import Signal, State
from espalier.router.prober import Prober
from espalier.router.workers import Worker, WorkerPool
from espalier.simulator.app import create_app
from espalier.simulator.settings import WorkerSettings
from tests.engine.workers import EngineWorker
from tests.router.running import DEADLINE_S, closed_port, router, run, until, url_of, worker_of
from tests.router.scripted import Script, answering, reply, scripted_worker
from tests.serving import serve

FAST = {"disable_health_check": False, "health_check_interval_secs": 0.1}
"""Settings of a router that probes often."""


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


class Telling:
    """A worker that answers each path as told (else 404), and keeps what it was asked for."""

    def __init__(self, **replies: bytes) -> None:
        self.replies: Mapping[str, bytes] = {f"/{path}": answer for path, answer in replies.items()}
        self.asked: list[str] = []

    def __call__(self, client: socket.socket, request: bytes) -> bool:
        path = request.split(b" ")[1].decode()
        self.asked.append(path)
        client.sendall(self.replies.get(path, reply(status="404 Not Found")))
        return True


OK, UNREADY = reply(b""), reply(b"", status="503 Service Unavailable")


def versioned(version: str) -> bytes:
    return reply(b'{"weight_version": "%s"}' % version.encode())


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


def test_long_call_to_a_revived_worker_does_not_inherit_the_probes_timeout() -> None:
    released = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        if request.startswith(b"POST /generate "):
            released.wait(0.6)
        return answering(reply(b"alive"))(client, request)

    with (
        closed_port() as port,
        router(url_of(port), **FAST, health_check_timeout_secs=0.2) as client,
    ):
        until(lambda: worker_of(client)["status"] == "dead")
        with scripted_worker(script, port):
            until(lambda: worker_of(client)["is_routable"])
            assert client.post("/generate").text == "alive"
            until(lambda: worker_of(client)["status"] == "healthy")


def test_router_probes_as_it_is_told_to() -> None:
    telling = Telling(custom=OK)
    told = {"health_check_endpoint": "/custom", "health_success_threshold": 1000}
    with closed_port() as port, router(url_of(port), **FAST, **told) as client:
        until(lambda: worker_of(client)["status"] == "dead")
        with scripted_worker(telling, port) as url:
            until(lambda: telling.asked.count("/custom") >= 4)
            assert worker_of(client)["status"] == "dead"
            client.post("/workers", json={"url": url})
            until(lambda: worker_of(client)["status"] == "suspect")
    assert "/ready" not in telling.asked


@pytest.mark.parametrize(("is_allowed", "taking"), [(False, ["2"]), (True, ["2", "1"])])
def test_stale_workers_take_calls_only_where_that_is_set(is_allowed: bool, taking: list[str]) -> None:
    with (
        scripted_worker(Telling(ready=OK, model_info=versioned("2"))) as first,
        scripted_worker(Telling(ready=OK, model_info=versioned("1"))) as second,
        router(first, second, **FAST, allow_stale_workers=is_allowed) as client,
    ):

        def shown(key: str) -> list[Any]:
            return [
                worker[key] for worker in client.get("/workers").json()["workers"] if worker["is_routable"]
            ]

        until(lambda: shown("weight_version") == taking and set(shown("status")) == {"healthy"})


@contextlib.contextmanager
def simulated_worker(**settings: object) -> Iterator[str]:
    options: dict[str, object] = {"decode_step_s": 0.0, "decode_step_per_request_s": 0.0, **settings}
    with serve(create_app(WorkerSettings(**options))) as url:  # type: ignore[arg-type]
        yield url


def test_worker_that_is_busy_with_long_generations_is_never_ejected() -> None:
    with (
        simulated_worker(decode_step_s=0.001, slice_s=0.01) as url,
        router(url, **FAST, health_check_timeout_secs=1) as client,
    ):
        until(lambda: worker_of(client)["status"] == "healthy")
        body = {
            "text": "Say something long.",
            "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True},
        }
        states: set[str] = set()
        answers: list[httpx.Response] = []
        calls = [
            threading.Thread(target=lambda: answers.append(client.post("/generate", json=body)))
            for _ in range(8)
        ]
        for call in calls:
            call.start()
        while any(call.is_alive() for call in calls):
            shown = worker_of(client)
            states.add(shown["status"])
            calls[0].join(0.02)
        assert [answer.status_code for answer in answers] == [200] * 8
        assert [answer.json()["meta_info"]["completion_tokens"] for answer in answers] == [2000] * 8
        assert states == {"healthy"}


def test_worker_that_is_paused_directly_is_seen_as_paused_and_resumes() -> None:
    with (
        simulated_worker() as url,
        simulated_worker() as other,
        router(url, other, **FAST) as client,
        httpx.Client(base_url=url, trust_env=False) as direct,
    ):
        until(lambda: worker_of(client)["status"] == "healthy")
        direct.post("/pause_generation", json={})
        until(lambda: worker_of(client)["status"] == "paused")
        told = worker_of(client)
        assert (told["is_routable"], told["is_healthy"], told["last_probe"]["outcome"]) == (
            False,
            True,
            "probe_paused",
        )
        body = {"text": "Hello", "sampling_params": {"max_new_tokens": 4}}
        assert {client.post("/generate", json=body).status_code for _ in range(4)} == {200}
        direct.post("/continue_generation", json={})
        until(lambda: worker_of(client)["status"] == "healthy")


def test_calls_wait_at_a_fleet_that_is_paused_as_a_whole() -> None:
    with (
        simulated_worker() as url,
        router(url, **FAST) as client,
        httpx.Client(base_url=url, trust_env=False) as direct,
    ):
        direct.post("/pause_generation", json={})
        until(lambda: worker_of(client)["status"] == "paused")
        answers: list[int] = []
        body = {"text": "Hello", "sampling_params": {"max_new_tokens": 4}}
        call = threading.Thread(
            target=lambda: answers.append(client.post("/generate", json=body).status_code)
        )
        call.start()
        until(lambda: worker_of(client)["load"] == 1)
        direct.post("/continue_generation", json={})
        call.join(DEADLINE_S)
        assert answers == [200]


def test_fleet_that_is_updated_directly_is_whole_again_soon() -> None:
    with contextlib.ExitStack() as running:
        urls = [running.enter_context(simulated_worker()) for _ in range(3)]
        client = running.enter_context(router(*urls, **{**FAST, "health_check_interval_secs": 1}))

        def versions() -> list[str]:
            return [worker["weight_version"] for worker in client.get("/workers").json()["workers"]]

        until(lambda: versions() == ["default"] * 3)
        httpx.post(f"{urls[0]}/update_weight_version", json={"new_version": "1"}, trust_env=False)
        until(lambda: [w["status"] for w in client.get("/workers").json()["workers"]][1:] == ["stale"] * 2)
        for url in urls[1:]:
            httpx.post(f"{url}/update_weight_version", json={"new_version": "1"}, trust_env=False)
        until(lambda: versions() == ["1"] * 3)
        assert {worker["is_routable"] for worker in client.get("/workers").json()["workers"]} == {True}


def test_stopped_process_is_found_dead_delays_nobody_and_revives_when_it_goes_on() -> None:
    command = [sys.executable, "-m", "espalier", "worker", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, simulated_worker() as other:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip().partition("url=")[2]
            with router(url, other, **FAST, health_check_timeout_secs=0.2) as client:
                until(lambda: worker_of(client)["status"] == "healthy")
                os.kill(process.pid, signal.SIGSTOP)
                until(lambda: worker_of(client)["status"] == "dead")
                second = client.get("/workers").json()["workers"][1]
                assert (second["status"], second["last_probe"]["outcome"]) == ("healthy", "probe_ok")
                os.kill(process.pid, signal.SIGCONT)
                until(lambda: worker_of(client)["is_routable"])
        finally:
            process.kill()


def test_nobody_is_probed_where_that_is_turned_off_and_calls_find_the_dead_again() -> None:
    asked: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        asked.append(request.split(b" ")[1])
        return answering(reply(b"alive"))(client, request)

    with closed_port() as port, router(url_of(port), health_check_interval_secs=0.2) as client:
        until(lambda: client.post("/generate").status_code == 503)
        assert worker_of(client)["status"] == "dead"
        with scripted_worker(script, port):
            until(lambda: client.post("/generate").text == "alive")
    assert set(asked) == {b"/generate"}


@pytest.mark.engine
def test_real_workers_are_seen_as_they_are(engine_workers: tuple[EngineWorker, ...]) -> None:
    first, second = engine_workers

    def shown(client: httpx.Client, key: str) -> list[str]:
        return [worker[key] for worker in client.get("/workers").json()["workers"]]

    def tell(worker: EngineWorker, path: str, body: dict[str, object]) -> None:
        httpx.post(f"{worker.url}{path}", json=body, trust_env=False, timeout=60).raise_for_status()

    with router(first.url, second.url, **FAST, health_check_timeout_secs=1) as client:
        until(lambda: shown(client, "status") == ["healthy"] * 2)
        assert shown(client, "weight_version") == ["default"] * 2
        tell(first, "/pause_generation", {})
        until(lambda: shown(client, "status") == ["paused", "healthy"])
        tell(first, "/continue_generation", {})
        until(lambda: shown(client, "status") == ["healthy"] * 2)
        second.signal(signal.SIGSTOP)
        try:
            until(lambda: shown(client, "status") == ["healthy", "dead"])
        finally:
            second.signal(signal.SIGCONT)
        until(lambda: shown(client, "status") == ["healthy"] * 2)
        try:
            tell(first, "/update_weight_version", {"new_version": "1"})
            until(lambda: shown(client, "status") == ["healthy", "stale"])
            tell(second, "/update_weight_version", {"new_version": "1"})
            until(lambda: shown(client, "status") == ["healthy"] * 2)
        finally:
            for worker in engine_workers:
                tell(worker, "/update_weight_version", {"new_version": "default"})


_: Script = Telling()
