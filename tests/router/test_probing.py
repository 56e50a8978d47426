"""Probes in a running router: what they do to its workers, and to calls."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from espalier.simulator.app import create_app
from espalier.simulator.settings import WorkerSettings
from tests.engine.workers import EngineWorker
from tests.router.running import DEADLINE_S, closed_port, router, until, url_of, worker_of
from tests.router.scripted import Script, answering, reply, scripted_worker
from tests.router.telling import OK, Telling, versioned
from tests.serving import serve

FAST = {"disable_health_check": False, "health_check_interval_secs": 0.1}
"""Settings of a router that probes often."""


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
