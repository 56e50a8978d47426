"""So many calls at work, so many waiting, and each of the others is told."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from espalier.errors import QueueTimeout, TooManyCalls
from espalier.router.admission import Admission
from espalier.router.tally import Tally
from tests.router.running import connection_to, router, until
from tests.router.scripted import reply, scripted_worker


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
            await gate.enter()
            order.append(name)

        await gate.enter()
        waiting = [asyncio.create_task(wait(name)) for name in ("first", "second")]
        await asyncio.sleep(0)
        assert tally.waiting == 2
        gate.leave()
        with pytest.raises(TooManyCalls):
            await gate.enter()
        await waiting[0]
        gate.leave()
        await waiting[1]
        assert order == ["first", "second"]
        gate.leave()
        await gate.enter()
        assert (tally.waiting, tally.refused) == (0, {"queue_full": 1})

    asyncio.run(test())


def test_call_that_gives_up_waiting_loses_no_place() -> None:
    async def test() -> None:
        gate, tally = admission()
        await gate.enter()
        leaving, staying = (asyncio.create_task(gate.enter()) for _ in range(2))
        await asyncio.sleep(0)
        gate.leave()
        leaving.cancel()  # it was given the place in the same turn
        await asyncio.wait([leaving])
        await staying
        assert tally.waiting == 0
        gate.leave()
        await gate.enter()

    asyncio.run(test())


def test_call_that_waits_too_long_is_told_and_leaves_no_trace() -> None:
    async def test() -> None:
        gate, tally = admission(timeout_s=0.01)
        await gate.enter()
        with pytest.raises(QueueTimeout, match=r"0\.01 s"):
            await gate.enter()
        gate.leave()
        await gate.enter()
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
