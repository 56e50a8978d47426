"""New weights for the whole fleet in one call: over real sockets, with workers that fail at every step."""

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from espalier.router.fleet import Fleet
from espalier.router.upstream import Upstream
from espalier.router.weight_updater import WeightUpdater
from espalier.router.weights import WeightUpdate
from espalier.router.workers import Worker, WorkerPool
from tests.router.running import DEADLINE_S, closed_port_url, connection_to, router, run, until
from tests.router.scripted import reply, scripted_worker
from tests.simulator.workers import INSTANT, SLOW, generate, running_worker

UPDATE = WeightUpdate(model_path="/models/2", weight_version="2")
NEW = {"model_path": "/models/2", "weight_version": "2", "mode": "retract"}


@dataclass(slots=True)
class Engine:
    """A worker's state, and what a test makes of single paths: an answer, or a function that blocks."""

    version: str = "1"
    is_paused: bool = False
    asked: list[str] = field(default_factory=list)
    """What it was told to do; who only asks, as probes do, is left out."""
    instead: dict[str, Callable[[], bytes | None]] = field(default_factory=dict)
    """What a path answers in place of SGLang's answer; None drops the connection."""
    url: str = ""

    def __call__(self, client: socket.socket, request: bytes) -> bool:
        """Answer one request, as `scripted_worker` has it."""
        path = request.split(b" ")[1].decode()
        if request.startswith(b"POST "):
            self.asked.append(path)
        if path in self.instead:
            answer = self.instead[path]()
            if answer is None:
                return False
        else:
            answer = self.answer(path, request.partition(b"\r\n\r\n")[2])
        client.sendall(answer)
        return True

    def answer(self, path: str, body: bytes) -> bytes:
        """Do what SGLang does."""
        if path == "/update_weights_from_disk":
            self.version = json.loads(body)["weight_version"]
        elif path in ("/pause_generation", "/continue_generation"):
            self.is_paused = path == "/pause_generation"
        return reply(json.dumps({"success": True, "weight_version": self.version}).encode())

    def holds_its_update(self) -> tuple[threading.Event, threading.Event]:
        """Return an event that tells that the update has come, and one that lets it go on."""
        asked, go = threading.Event(), threading.Event()

        def hold() -> bytes:
            asked.set()
            assert go.wait(DEADLINE_S)
            return self.answer("/update_weights_from_disk", b'{"weight_version": "2"}')

        self.instead["/update_weights_from_disk"] = hold
        return asked, go

    def refuses(self, path: str, status: str = "500 Broken") -> None:
        self.instead[path] = lambda: reply(b"no", status=status)


@contextmanager
def engines(*all_engines: Engine, **settings: Any) -> Iterator[httpx.Client]:
    """Run a router in front of scripted engines; yields a client of it."""
    with ExitStack() as running:
        for engine in all_engines:
            engine.url = running.enter_context(scripted_worker(engine))
        yield running.enter_context(router(*(engine.url for engine in all_engines), **settings))


def by_url(answer: httpx.Response) -> dict[str, Any]:
    return {result["url"]: result for result in answer.json()["results"].values()}


def routable(client: httpx.Client) -> set[str]:
    """Return the URLs of the workers that take calls."""
    workers = client.get("/fleet/weights").json()["workers"].values()
    return {worker["url"] for worker in workers if worker["is_routable"]}


def test_all_workers_serve_the_new_weights_after_one_call() -> None:
    first, second = Engine(), Engine()
    with engines(first, second) as client:
        answer = client.put("/fleet/weights", json=NEW)
        assert answer.status_code == 200
        told = answer.json()
        assert (told["total"], told["succeeded"], told["failed"]) == (2, 2, [])
        assert (told["weight_version"], told["model_path"], told["mode"]) == ("2", "/models/2", "retract")
        for result in told["results"].values():
            assert (result["success"], result["weight_version"]) == (True, "2")
            assert set(result["latency_ms"]) == {"ask", "pause", "update", "check", "continue"}
        for engine in (first, second):
            assert engine.asked == [
                "/pause_generation",
                "/update_weights_from_disk",
                "/continue_generation",
            ]
            assert not engine.is_paused
        assert routable(client) == {first.url, second.url}


def test_no_worker_goes_on_before_all_have_been_updated() -> None:
    """The first is done long before the second; it must not sample from the new weights until then."""
    first, second = Engine(), Engine()
    first_is_done, first_may_go = first.holds_its_update()
    _, second_may_go = second.holds_its_update()
    first_may_go.set()
    with engines(first, second) as client, ThreadPoolExecutor(1) as pool:
        updating = pool.submit(client.put, "/fleet/weights", json=NEW)
        assert first_is_done.wait(DEADLINE_S)
        assert client.get("/fleet/weights", params={"worker": first.url}).json()["is_updating"]
        assert "/continue_generation" not in first.asked
        second_may_go.set()
        assert updating.result(DEADLINE_S).status_code == 200


@pytest.mark.parametrize(
    ("path", "failed_step"),
    [("/pause_generation", "pause"), ("/update_weights_from_disk", "update")],
)
def test_worker_that_fails_is_continued_but_takes_no_calls(path: str, failed_step: str) -> None:
    good, bad = Engine(), Engine()
    bad.refuses(path)
    with engines(good, bad) as client:
        answer = client.put("/fleet/weights", json=NEW)
        assert answer.status_code == 207
        result = by_url(answer)[bad.url]
        assert (result["success"], result["failed_step"], result["message"]) == (False, failed_step, "no")
        assert (result["weight_version"], result["may_be_paused"]) == ("1", False)
        assert [(each["url"], each["error"]) for each in answer.json()["failed"]] == [
            (bad.url, f"{failed_step}_failed")
        ]
        assert bad.asked[-1] == "/continue_generation"
        assert not bad.is_paused
        assert routable(client) == {good.url}


def test_worker_that_failed_catches_up_alone() -> None:
    good, bad = Engine(), Engine()
    bad.refuses("/update_weights_from_disk")
    with engines(good, bad) as client:
        assert client.put("/fleet/weights", json=NEW).status_code == 207
        del bad.instead["/update_weights_from_disk"]
        asked_before = len(good.asked)
        answer = client.put("/fleet/weights", json=NEW, params={"worker": bad.url})
        assert (answer.status_code, answer.json()["total"]) == (200, 1)
        assert len(good.asked) == asked_before
        assert routable(client) == {good.url, bad.url}


def test_dead_worker_is_neither_paused_nor_waited_for() -> None:
    good = Engine()
    with engines(good) as client, closed_port_url() as dead:
        client.post("/add_worker", params={"url": dead})
        answer = client.put("/fleet/weights", json=NEW)
        assert answer.status_code == 207
        assert (by_url(answer)[dead]["failed_step"], by_url(answer)[dead]["weight_version"]) == ("ask", None)
        assert not good.is_paused
        assert client.put("/fleet/weights", json=NEW, params={"worker": dead}).status_code == 502


class ListeningPool(WorkerPool):
    """A pool that keeps what it is told of weights, in order."""

    def __init__(self) -> None:
        super().__init__(failure_threshold=3)
        self.told: list[tuple[str, str]] = []

    def note_weight_version(self, worker: Worker, version: str, **known: Any) -> None:
        self.told.append((worker.url, version))
        super().note_weight_version(worker, version, **known)


def updater_of(
    *engines: Engine, pool: WorkerPool | None = None, quick_timeout_s: float = DEADLINE_S
) -> tuple[WeightUpdater, list[Worker]]:
    """Return an updater of these engines, without a router around it."""
    if pool is None:
        pool = WorkerPool(failure_threshold=3)
    workers = [pool.add(engine.url)[0] for engine in engines]
    upstream = Upstream(connect_timeout_s=5, request_timeout_s=DEADLINE_S, idle_timeout_s=0)
    fleet = Fleet(pool, upstream, concurrency=32, quick_timeout_s=quick_timeout_s)
    return WeightUpdater(pool, fleet), workers


def test_nobody_is_paused_for_the_sake_of_a_worker_that_hangs() -> None:
    good, hung = Engine(), Engine()
    over = threading.Event()

    def hang() -> None:
        over.wait(DEADLINE_S)

    async def test() -> None:
        updater, workers = updater_of(good, hung, quick_timeout_s=0.3)
        finished = await updater.run(UPDATE, workers, [])
        assert [each.succeeded for each in finished.progress.values()] == [True, False]

    hung.instead["/model_info"] = hang
    with scripted_worker(good) as good.url, scripted_worker(hung) as hung.url:
        run(test())
        over.set()
    assert hung.asked == []


def test_pool_learns_the_new_version_after_the_old_and_before_who_lacks_it() -> None:
    """So whoever lacks it is behind at once, however the pool tells which version is the newest."""
    bad, good = Engine(), Engine()
    pool = ListeningPool()

    async def test() -> None:
        updater, workers = updater_of(bad, good, pool=pool)
        await updater.run(UPDATE, workers, [])

    bad.refuses("/update_weights_from_disk")
    with scripted_worker(bad) as bad.url, scripted_worker(good) as good.url:
        run(test())
        assert pool.told == [(bad.url, "1"), (good.url, "1"), (good.url, "2"), (bad.url, "1")]


def test_who_gives_up_waiting_does_not_end_the_update() -> None:
    engine = Engine()
    asked, go = engine.holds_its_update()

    async def test() -> None:
        updater, workers = updater_of(engine)
        waiting = asyncio.create_task(updater.run(UPDATE, workers, []))
        assert await asyncio.to_thread(asked.wait, DEADLINE_S)
        waiting.cancel()
        await asyncio.wait([waiting])
        go.set()
        await asyncio.to_thread(until, lambda: not updater.is_running)
        assert updater.last is not None
        assert updater.last.status == 200

    with scripted_worker(engine) as engine.url:
        run(test())
    assert not engine.is_paused


def test_update_that_is_given_up_before_it_began_asks_nobody() -> None:
    engine = Engine()

    async def test() -> None:
        updater, workers = updater_of(engine)
        waiting = asyncio.create_task(updater.run(UPDATE, workers, []))
        await asyncio.sleep(0)
        await updater.aclose()
        (progress,) = (await waiting).progress.values()
        assert progress.failure is not None
        assert progress.failure.message == "The router is shutting down"

    with scripted_worker(engine) as engine.url:
        run(test())
    assert engine.asked == []


def test_worker_that_hangs_in_its_update_does_not_stay_paused() -> None:
    good, hung = Engine(), Engine()
    over = threading.Event()

    def hang() -> None:
        over.wait(DEADLINE_S)

    hung.instead["/update_weights_from_disk"] = hang
    with engines(good, hung, fleet_timeout_secs=0.5) as client:
        answer = client.put("/fleet/weights", json=NEW)
        over.set()
        assert answer.status_code == 207
        result = by_url(answer)[hung.url]
        assert (result["failed_step"], result["weight_version"]) == ("update", "1")
        assert "within 0.5 s" in result["message"]
        assert not hung.is_paused
        assert routable(client) == {good.url}


def test_worker_that_reports_another_version_has_failed() -> None:
    liar = Engine()
    liar.instead["/update_weights_from_disk"] = lambda: reply(b'{"success": true}')
    with engines(liar) as client:
        answer = client.put("/fleet/weights", json=NEW)
        assert answer.status_code == 502
        result = by_url(answer)[liar.url]
        assert (result["failed_step"], result["message"]) == ("check", "It reports the weight version '1'")


def test_update_that_a_worker_made_and_called_a_failure_counts() -> None:
    engine = Engine()

    def update_but_refuse() -> bytes:
        engine.version = "2"
        return reply(b'{"success": false, "message": "not flushed"}', status="400 Bad Request")

    engine.instead["/update_weights_from_disk"] = update_but_refuse
    with engines(engine) as client:
        answer = client.put("/fleet/weights", json={**NEW, "mode": "in_place", "flush_cache": True})
        assert answer.status_code == 200
        assert by_url(answer)[engine.url]["warning"] == "not flushed"


def test_worker_is_told_to_continue_until_it_does() -> None:
    engine = Engine()
    attempts: list[None] = []

    def fail_twice() -> bytes:
        attempts.append(None)
        if len(attempts) < 3:
            return reply(status="500 Broken")
        return engine.answer("/continue_generation", b"")

    engine.instead["/continue_generation"] = fail_twice
    with engines(engine) as client:
        assert client.put("/fleet/weights", json=NEW).status_code == 200
        assert (len(attempts), engine.is_paused) == (3, False)
        engine.refuses("/continue_generation")
        answer = client.put("/fleet/weights", json=NEW)
        assert answer.status_code == 502
        result = by_url(answer)[engine.url]
        assert (result["failed_step"], result["may_be_paused"]) == ("continue", True)


def test_second_update_is_told_that_one_is_under_way() -> None:
    engine = Engine()
    asked, go = engine.holds_its_update()
    with engines(engine) as client, ThreadPoolExecutor(1) as pool:
        updating = pool.submit(client.put, "/fleet/weights", json=NEW)
        assert asked.wait(DEADLINE_S)
        second = client.put("/fleet/weights", json=NEW)
        go.set()
        assert (second.status_code, second.json()["error"]["code"]) == (409, "conflict")
        assert updating.result(DEADLINE_S).status_code == 200
        assert Counter(engine.asked)["/pause_generation"] == 1
        assert client.put("/fleet/weights", json=NEW).status_code == 200


def test_client_that_hangs_up_does_not_end_the_update() -> None:
    engine = Engine()
    asked, go = engine.holds_its_update()
    with engines(engine) as client:
        body = json.dumps(NEW).encode()
        head = f"PUT /fleet/weights HTTP/1.1\r\nhost: r\r\ncontent-length: {len(body)}\r\n"
        with connection_to(client) as bare:
            bare.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
            assert asked.wait(DEADLINE_S)
        go.set()
        until(lambda: not client.get("/fleet/weights").json()["is_updating"])
        last = client.get("/fleet/weights").json()["last_update"]
        assert (last["succeeded"], last["weight_version"]) == (1, "2")
        assert not engine.is_paused


def test_router_that_shuts_down_leaves_no_worker_paused() -> None:
    engine, other = Engine(), Engine()
    asked, over = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        over.wait(DEADLINE_S)

    engine.instead["/update_weights_from_disk"] = hang
    with engines(engine, other) as client:
        body = json.dumps(NEW).encode()
        head = f"PUT /fleet/weights HTTP/1.1\r\nhost: r\r\ncontent-length: {len(body)}\r\n"
        with connection_to(client) as bare:
            bare.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
            assert asked.wait(DEADLINE_S)
            assert engine.is_paused
        # The workers outlive the router here: `engines` stops it first.
    over.set()
    for each in (engine, other):
        assert each.asked[-1] == "/continue_generation"
        assert not each.is_paused


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
def test_generations_of_simulated_workers_live_through_the_update(mode: str) -> None:
    with (
        running_worker(**SLOW) as first,
        running_worker(**SLOW) as second,
        router(str(first.base_url), str(second.base_url)) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        params = {"max_new_tokens": 200, "ignore_eos": True}
        running = [pool.submit(generate, client, text="Count.", sampling_params=params) for _ in range(4)]
        until(lambda: sum(map(busy, (first, second))) == 4)
        answer = client.put("/fleet/weights", json={**NEW, "mode": mode})
        assert answer.status_code == 200, answer.text
        for each in running:
            meta = each.result(DEADLINE_S)["meta_info"]
            spans = [span["version"] for span in meta["weight_versions"]]
            if mode == "abort":
                assert meta["finish_reason"]["type"] == "abort"
                assert spans == ["default"]
            else:
                assert meta["finish_reason"]["type"] == "length"
                assert spans == ["default", "2"]
        assert [worker.get("/ready").status_code for worker in (first, second)] == [200, 200]
        assert generate(client, text="Count.", sampling_params=params)["meta_info"]["weight_version"] == "2"


def busy(worker: httpx.Client) -> int:
    running: int = worker.get("/v1/loads").json()["loads"][0]["num_running_reqs"]
    return running


def test_simulated_worker_that_cannot_load_the_weights_is_stale() -> None:
    with (
        running_worker(**INSTANT) as good,
        running_worker(**INSTANT, check_model_path=True) as bad,
        router(str(good.base_url), str(bad.base_url)) as client,
    ):
        answer = client.put("/fleet/weights", json=NEW)
        assert answer.status_code == 207
        result = by_url(answer)[str(bad.base_url)]
        assert (result["failed_step"], result["weight_version"]) == ("update", "default")
        assert "is not a folder" in result["message"]
        assert [worker.get("/ready").status_code for worker in (good, bad)] == [200, 200]
        versions = {
            generate(client, text="Hi", sampling_params={"max_new_tokens": 2})["meta_info"]["weight_version"]
            for _ in range(4)
        }
        assert versions == {"2"}
