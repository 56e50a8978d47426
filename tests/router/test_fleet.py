"""Control calls reach every worker, each one's answer is told, and the pool learns what they changed."""

import asyncio
import json
import socket
import threading
from typing import Any

import pytest

from espalier.calls import Call
from espalier.router.fleet import MAX_REPLY_BYTES, Fleet
from espalier.router.health import Signal
from espalier.router.upstream import Upstream
from espalier.router.workers import Worker, WorkerPool
from tests.router.running import DEADLINE_S, closed_port_url, router, run
from tests.router.scripted import Script, answering, reply, scripted_worker


class WatchedPool(WorkerPool):
    """A pool that keeps what it is told of pauses and weights."""

    def __init__(self) -> None:
        super().__init__(failure_threshold=3)
        self.told: list[str] = []

    def report(self, worker: Worker, signal: Signal) -> None:
        if signal in (Signal.PAUSED, Signal.RESUMED):
            self.told.append(signal)
        super().report(worker, signal)

    def note_weight_version(self, worker: Worker, version: str, **known: Any) -> None:
        self.told.append(f"serves {version}")
        super().note_weight_version(worker, version, **known)


def by_path(**answers: bytes) -> Script:
    """Return a script that answers each path (its slash left out) with the reply of that name, else 200."""

    def script(client: socket.socket, request: bytes) -> bool:
        path = request.split(b" ")[1].partition(b"?")[0].decode().strip("/")
        client.sendall(answers.get(path, reply()))
        return True

    return script


def fleet_of(pool: WorkerPool, *, concurrency: int = 32, quick_timeout_s: float = DEADLINE_S) -> Fleet:
    upstream = Upstream(connect_timeout_s=5, request_timeout_s=DEADLINE_S, idle_timeout_s=0)
    return Fleet(pool, upstream, concurrency=concurrency, quick_timeout_s=quick_timeout_s)


def call(path: str) -> Call:
    key = [(b"authorization", b"Bearer k"), (b"x-other", b"1")]
    return Call(method="POST", path=path, target=path.encode(), headers=list(key), body=b"{}", request_id="")


def test_reply_tells_how_each_worker_answered() -> None:
    with (
        scripted_worker(answering(reply(b'{"ok":true}'))) as good,
        scripted_worker(answering(reply(b"no", status="400 Bad Request"))) as bad,
        router(good, bad) as client,
    ):
        answer = client.post("/slow_down", json={})
        assert answer.status_code == 207
        told = answer.json()
        assert (told["total"], told["succeeded"]) == (2, 1)
        results = {result["url"]: result for result in told["results"].values()}
        assert (results[good]["status"], results[good]["body"]) == (200, {"ok": True})
        assert (results[bad]["status"], results[bad]["body"]) == (400, "no")
        assert [(each["url"], each["message"]) for each in told["failed"]] == [(bad, "no")]


def test_status_tells_whether_all_some_or_no_workers_succeeded() -> None:
    with (
        scripted_worker(answering(reply(b""))) as alive,
        closed_port_url() as dead,
        router(alive) as client,
    ):
        answer = client.post("/freeze_gc")
        assert answer.status_code == 200
        assert [result["body"] for result in answer.json()["results"].values()] == [None]
        client.post("/add_worker", params={"url": dead})
        assert client.post("/freeze_gc").status_code == 207
        client.post("/remove_worker", params={"url": alive})
        refused = client.post("/freeze_gc")
        assert refused.status_code == 502
        (result,) = refused.json()["results"].values()
        assert "took no connection" in result["body"]["error"]
        client.post("/remove_worker", params={"url": dead})
        assert client.post("/freeze_gc").status_code == 503


def test_worker_that_says_it_did_not_succeed_has_not() -> None:
    said = reply(b'{"success": false, "message": "no such adapter"}')
    with scripted_worker(answering(said)) as worker, router(worker) as client:
        answer = client.post("/unload_lora_adapter", json={"lora_name": "x"})
        assert answer.status_code == 502
        (failed,) = answer.json()["failed"]
        assert (failed["status"], failed["message"]) == (200, "no such adapter")


def test_workers_are_asked_at_the_same_time() -> None:
    both_asked = threading.Barrier(2, timeout=DEADLINE_S)

    def script(client: socket.socket, request: bytes) -> bool:
        both_asked.wait()
        return answering(reply())(client, request)

    with scripted_worker(script) as first, scripted_worker(script) as second, router(first, second) as client:
        assert client.post("/flush_cache").status_code == 200


def test_no_more_are_done_at_the_same_time_than_the_limit_says() -> None:
    async def test(*, at_once: bool) -> int:
        active = most = 0

        async def do(item: int) -> int:
            nonlocal active, most
            active += 1
            most = max(most, active)
            for _ in range(10):  # lets all that may begin do so
                await asyncio.sleep(0)
            active -= 1
            return item * 2

        doubled = await fleet_of(WatchedPool(), concurrency=3).each(range(10), do, at_once=at_once)
        assert doubled == [item * 2 for item in range(10)]
        return most

    assert asyncio.run(test(at_once=False)) == 3
    assert asyncio.run(test(at_once=True)) == 10


def test_collective_call_reaches_all_at_the_same_time_whatever_the_limit() -> None:
    """Each worker answers only once all have been asked: with the limit it would never end."""
    all_asked = threading.Barrier(3, timeout=DEADLINE_S)

    def script(client: socket.socket, request: bytes) -> bool:
        all_asked.wait()
        return answering(reply(b'{"success": true}'))(client, request)

    with (
        scripted_worker(script) as first,
        scripted_worker(script) as second,
        scripted_worker(script) as third,
        router(first, second, third, fleet_concurrency=1) as client,
    ):
        assert client.post("/init_weights_update_group", json={}).status_code == 200


def test_worker_that_hangs_past_the_time_limit_is_told_and_the_others_are_not_held_up() -> None:
    def hang(client: socket.socket, request: bytes) -> bool:
        return client.recv(1) != b""

    with (
        scripted_worker(hang) as hung,
        scripted_worker(answering(reply())) as good,
        router(hung, good, fleet_timeout_secs=0.3) as client,
    ):
        answer = client.post("/flush_cache")
        assert answer.status_code == 207
        (failed,) = answer.json()["failed"]
        assert (failed["url"], failed["status"], failed["error"]) == (hung, 504, "upstream_timeout")
        assert "within 0.3 s" in failed["message"]


def test_worker_that_should_answer_at_once_is_not_waited_for_longer() -> None:
    async def test() -> None:
        pool = WatchedPool()
        worker, _ = pool.add(url)
        answer = await fleet_of(pool, quick_timeout_s=0.1).ask(worker, call("/model_info"), quickly=True)
        assert (answer.status, answer.code) == (504, "upstream_timeout")
        assert "did not answer within 0.1 s" in answer.message

    with scripted_worker(lambda client, _: client.recv(1) != b"") as url:
        run(test())


def test_answer_that_is_too_long_is_not_kept() -> None:
    with (
        scripted_worker(answering(reply(b"x" * (MAX_REPLY_BYTES + 1)))) as talkative,
        scripted_worker(answering(reply(b"x" * MAX_REPLY_BYTES))) as terse,
        router(talkative, terse) as client,
    ):
        results = client.post("/flush_cache").json()["results"].values()
        told = {result["url"]: result for result in results}
        assert told[talkative]["status"] == 502
        assert f"longer than {MAX_REPLY_BYTES} bytes" in told[talkative]["body"]["error"]
        assert (told[terse]["status"], len(told[terse]["body"])) == (200, MAX_REPLY_BYTES)


def test_answer_that_is_no_json_is_told_as_text() -> None:
    for body in (b"fl\xc3\xbcshed", b"\xff", b"[" * 100_000):
        with scripted_worker(answering(reply(body))) as worker, router(worker) as client:
            (result,) = client.post("/flush_cache").json()["results"].values()
            assert result["body"] == body.decode("utf-8", "replace")


def test_control_call_is_never_sent_twice() -> None:
    """Other calls go out again where a kept connection turns out dead; these have fresh ones."""
    seen: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        if b"/start_profile" in request:
            seen.append(request)
            if len(seen) == 2:
                return False
        return answering(reply())(client, request)

    with scripted_worker(script) as worker, router(worker) as client:
        assert client.post("/start_profile").status_code == 200
        assert client.post("/start_profile").status_code == 502
        assert len(seen) == 2


@pytest.mark.parametrize(
    ("path", "answer", "told"),
    [
        ("/pause_generation", reply(), ["paused"]),
        ("/continue_generation", reply(), ["resumed"]),
        ("/pause_generation", reply(status="500 Oh"), []),
        ("/continue_generation", reply(b'{"success": false}'), []),
        ("/flush_cache", reply(), []),
        ("/update_weights_from_tensor", reply(b'{"success": true}'), ["serves 8"]),
        ("/update_weight_version", reply(b'{"success": true}'), ["serves 8"]),
    ],
)
def test_pool_learns_what_a_call_changed(path: str, answer: bytes, told: list[str]) -> None:
    async def test() -> None:
        pool = WatchedPool()
        worker, _ = pool.add(url)
        await fleet_of(pool).tell([(worker, call(path))])
        assert pool.told == told

    script = by_path(**{path.strip("/"): answer, "model_info": reply(b'{"weight_version": "8"}')})
    with scripted_worker(script) as url:
        run(test())


def test_worker_that_updated_although_it_says_otherwise_is_known_by_what_it_reports() -> None:
    """SGLang does so where it could not flush its cache: 400, and the new weights."""
    refusal = reply(b'{"success": false, "message": "not flushed"}', status="400 Bad Request")
    script = by_path(update_weights_from_disk=refusal, model_info=reply(b'{"weight_version": "9"}'))
    with scripted_worker(script) as worker, router(worker) as client:
        answer = client.post("/update_weights_from_disk", json={"model_path": "/m", "weight_version": "9"})
        assert answer.status_code == 502
        (result,) = answer.json()["results"].values()
        assert (result["success"], result["weight_version"]) == (False, "9")
        assert client.get("/fleet/weights").json()["newest_weight_version"] == "9"


def test_worker_is_asked_for_its_version_with_the_key_of_the_call() -> None:
    asked: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        asked.append(request)
        return answering(reply(b'{"weight_version": "1"}'))(client, request)

    async def test() -> None:
        pool = WatchedPool()
        worker, _ = pool.add(url)
        await fleet_of(pool).tell([(worker, call("/end_weight_update"))])

    with scripted_worker(script) as url:
        run(test())
    update, info = asked
    assert b"x-other: 1" in update
    assert info.startswith(b"GET /model_info ")
    assert b"authorization: Bearer k\r\n" in info
    assert b"x-other" not in info


def test_worker_that_tells_no_version_costs_nothing_but_the_version() -> None:
    for info in (reply(status="404 Not Found"), reply(b"[]"), reply(b"{}")):
        script = by_path(update_weight_version=reply(b'{"success": true}'), model_info=info)
        with scripted_worker(script) as worker, router(worker) as client:
            answer = client.post("/update_weight_version", json={"new_version": "3"})
            assert answer.status_code == 200
            (result,) = answer.json()["results"].values()
            assert "weight_version" not in result


def test_large_body_reaches_every_worker_whole() -> None:
    received: list[int] = []

    def script(client: socket.socket, request: bytes) -> bool:
        received.append(len(json.loads(request.partition(b"\r\n\r\n")[2])["tensor"]))
        return answering(reply(b'{"success": true}'))(client, request)

    size = 8 << 20
    with scripted_worker(script) as first, scripted_worker(script) as second, router(first, second) as client:
        answer = client.post("/load_lora_adapter_from_tensors", json={"tensor": "x" * size})
        assert answer.status_code == 200
        assert received == [size, size]
