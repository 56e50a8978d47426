"""So many calls at work, so many waiting, and each of the others is told."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from espalier.calls import Call
from espalier.errors import QueueTimeout, TooManyCalls
from espalier.router.admission import Admission
from espalier.router.tally import Tally
from tests.router.running import connection_to, router, until
from tests.router.scripted import reply, scripted_worker

CALL = Call(method="POST", path="/generate", target=b"/generate", headers=[], body=b"", request_id="r")


def admission(*, concurrent: int = 1, queue: int = 2, timeout_s: float = 60.0) -> tuple[Admission, Tally]:
    tally = Tally()
    return (
        Admission(max_concurrent=concurrent, queue_size=queue, queue_timeout_s=timeout_s, tally=tally),
        tally,
    )


def test_place_goes_to_the_one_who_has_waited_longest_and_no_newcomer_passes() -> None:
    async def test() -> None:
        gate, tally = admission()
        order: list[str] = []

        async def wait(name: str) -> None:
            await gate.enter(CALL)
            order.append(name)

        await gate.enter(CALL)
        waiting = [asyncio.create_task(wait(name)) for name in ("first", "second")]
        await asyncio.sleep(0)
        assert tally.waiting == 2
        gate.leave()
        with pytest.raises(TooManyCalls):
            await gate.enter(CALL)
        await waiting[0]
        gate.leave()
        await waiting[1]
        assert order == ["first", "second"]
        gate.leave()
        await gate.enter(CALL)
        assert (tally.waiting, tally.refused) == (0, {"queue_full": 1})

    asyncio.run(test())


def test_call_that_gives_up_waiting_loses_no_place() -> None:
    async def test() -> None:
        gate, tally = admission()
        await gate.enter(CALL)
        leaving, staying = (asyncio.create_task(gate.enter(CALL)) for _ in range(2))
        await asyncio.sleep(0)
        gate.leave()
        leaving.cancel()  # it was given the place in the same turn
        await asyncio.wait([leaving])
        await staying
        assert tally.waiting == 0
        gate.leave()
        await gate.enter(CALL)

    asyncio.run(test())


def test_call_that_waits_too_long_is_told_and_leaves_no_trace() -> None:
    async def test() -> None:
        gate, tally = admission(timeout_s=0.01)
        await gate.enter(CALL)
        with pytest.raises(QueueTimeout, match=r"0\.01 s"):
            await gate.enter(CALL)
        gate.leave()
        await gate.enter(CALL)
        assert (tally.waiting, tally.refused) == (0, {"queue_timeout": 1})

    asyncio.run(test())


@contextlib.contextmanager
def held_router(release: threading.Event, **settings: float) -> Iterator[httpx.Client]:
    """Run a router whose worker answers nothing until `release` is set."""

    def script(client: socket.socket, request: bytes) -> bool:
        release.wait(20)
        client.sendall(reply(b"done"))
        return True

    with scripted_worker(script) as worker, router(worker, **settings) as client:
        try:
            yield client
        finally:
            release.set()


def waiting(client: httpx.Client) -> bool:
    return "espalier_queue_length 1.0" in client.get("/metrics").text


def test_one_call_works_one_waits_and_the_third_is_429_with_retry_after() -> None:
    release = threading.Event()
    with (
        held_router(release, max_concurrent_requests=1, queue_size=1) as client,
        ThreadPoolExecutor() as pool,
    ):
        calls = [pool.submit(client.post, "/generate")]
        until(lambda: client.get("/workers").json()["workers"][0]["load"] == 1)
        calls.append(pool.submit(client.post, "/generate"))
        until(lambda: waiting(client))
        refused = client.post("/generate")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_calls"
        assert int(refused.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 200
        release.set()
        assert [call.result().text for call in calls] == ["done", "done"]


def test_call_that_waits_too_long_is_408_with_retry_after() -> None:
    release = threading.Event()
    with (
        held_router(release, max_concurrent_requests=1, queue_timeout_secs=0.05) as client,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(client.post, "/generate")
        until(lambda: client.get("/workers").json()["workers"][0]["load"] == 1)
        late = client.post("/generate")
        assert (late.status_code, late.json()["error"]["code"]) == (408, "queue_timeout")
        assert int(late.headers["retry-after"]) > 0
        release.set()
        assert first.result().text == "done"


def test_client_that_hangs_up_while_it_waits_frees_its_place_in_the_queue() -> None:
    release = threading.Event()
    with (
        held_router(release, max_concurrent_requests=1, queue_size=1) as client,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(client.post, "/generate")
        until(lambda: client.get("/workers").json()["workers"][0]["load"] == 1)
        with connection_to(client) as bare:
            bare.sendall(b"POST /generate HTTP/1.1\r\nhost: r\r\ncontent-length: 0\r\n\r\n")
            until(lambda: waiting(client))
        until(lambda: not waiting(client))
        release.set()
        assert first.result().text == "done"


@pytest.mark.parametrize(
    "abort",
    [{"rid": "mine"}, {"rid": "mi", "prefix": True}, {"abort_all": True}],
    ids=["rid", "prefix", "all"],
)
def test_call_that_is_aborted_while_it_waits_is_answered_as_a_workers_queue_does(
    abort: dict[str, Any],
) -> None:
    captured = json.loads(Path("tests/captures/abort_waiting_result.json").read_text())["response"]["json"]
    release = threading.Event()
    with held_router(release, max_concurrent_requests=1) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/generate")
        until(lambda: client.get("/workers").json()["workers"][0]["load"] == 1)
        call = pool.submit(client.post, "/generate", json={"rid": "mine", "text": "hi"})
        until(lambda: waiting(client))
        aborting = pool.submit(client.post, "/abort_request", json=abort)
        told = call.result()
        assert told.status_code == 200
        assert told.json()["meta_info"]["id"] == "mine"
        assert told.json()["meta_info"]["finish_reason"] == captured["meta_info"]["finish_reason"]
        assert set(told.json()) == set(captured)
        assert told.json()["meta_info"].keys() <= captured["meta_info"].keys()
        release.set()
        assert first.result().text == "done"
        assert aborting.result().status_code == 200
        assert not waiting(client)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/generate", {"rid": "mine", "text": "hi", "stream": True}, 200, "data: [DONE]"),
        ("/generate", {"rid": "mine", "text": ["one", "two"]}, 409, "aborted while it waited"),
        ("/v1/chat/completions", {"rid": "mine", "messages": []}, 409, "aborted while it waited"),
    ],
)
def test_other_calls_that_are_aborted_while_they_wait_are_told(
    path: str, body: dict[str, Any], status: int, words: str
) -> None:
    release = threading.Event()
    with held_router(release, max_concurrent_requests=1) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/generate")
        until(lambda: client.get("/workers").json()["workers"][0]["load"] == 1)
        call = pool.submit(client.post, path, json=body)
        until(lambda: waiting(client))
        other = client.post("/abort_request", json={"rid": "mine"})
        assert other.status_code == 200
        assert call.result().status_code == status
        assert words in call.result().text
        release.set()
        assert first.result().text == "done"
