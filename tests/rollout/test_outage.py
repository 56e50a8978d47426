import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from espalier.rollout.client import RetryPolicy, RouterClient
from espalier.rollout.outage import REMINDER_S, Outage, Outages
from espalier.rollout.problems import RouterUnavailable
from tests.rollout.fake_router import FakeRouter, Scripted

PAYLOAD = {"text": "a b", "rid": "x", "sampling_params": {}}
NOBODY = Scripted(503, {"error": {"message": "gone", "code": "no_available_workers"}}, {"retry-after": "5"})


class Clock:
    """Seconds that pass when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def outage(clock: Clock, told: list[str], patience_s: float = 60.0) -> Outage:
    return Outage("it is gone", "it is back", patience_s=patience_s, tell=told.append, clock=clock)


def test_an_outage_is_told_at_once_and_then_now_and_again(clock: Clock) -> None:
    told: list[str] = []
    gone = outage(clock, told)
    gone.note("refused")
    assert told == ["it is gone: refused; waiting, 60 s at most"]
    for _ in range(4):
        clock.now_s += REMINDER_S / 2
        gone.note("refused")
    assert told[1:] == ["it is gone, for 10 s now: refused", "it is gone, for 20 s now: refused"]
    clock.now_s += 1
    gone.end()
    gone.end()
    assert told[3:] == ["it is back after 21 s"]


def test_patience_ends_and_begins_anew_with_the_next_outage(clock: Clock) -> None:
    gone = outage(clock, [], patience_s=30)
    gone.note("refused")
    clock.now_s += 29
    gone.note("refused")
    gone.end()
    clock.now_s += 29
    gone.note("refused")
    clock.now_s += 30
    with pytest.raises(RouterUnavailable, match=r"gone, for 30 s now: refused\. --router-patience-s"):
        gone.note("refused")


def asked(url: str, clock: Clock, question: Callable[[RouterClient], Any], told: list[str]) -> Any:
    async def run() -> Any:
        outages = Outages(patience_s=60.0, tell=told.append, clock=clock)
        async with RouterClient(
            url,
            max_connections=4,
            request_timeout_s=20.0,
            retry=RetryPolicy(attempts=2),
            outages=outages,
            sleep=clock.sleep,
        ) as client:
            return await question(client)

    return asyncio.run(run())


def test_a_generation_waits_for_workers_beyond_its_attempts(
    fake: FakeRouter, router_url: str, clock: Clock
) -> None:
    fake.scripted["/generate"] = [NOBODY] * 8
    told: list[str] = []
    assert asked(router_url, clock, lambda client: client.generate(PAYLOAD), told).text
    assert told[0] == "the router has no worker to send a call to: gone; waiting, 60 s at most"
    assert told[-1] == "there are workers again after 40 s"
    fake.scripted["/generate"] = [NOBODY] * 20
    with pytest.raises(RouterUnavailable, match="no worker"):
        asked(router_url, clock, lambda client: client.generate(PAYLOAD), told)
    assert len(fake.scripted["/generate"]) == 20 - 13


def test_a_generation_waits_for_a_router_that_is_gone(clock: Clock) -> None:
    told: list[str] = []
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(RouterUnavailable, match=r"unreachable, for 6\d s now: POST .*Connection refused"):
            asked(url, clock, lambda client: client.generate(PAYLOAD), told)
    assert told[0].startswith("the router is unreachable: ")


def test_waiting_for_workers_tells_whether_there_was_anything_to_wait_for(
    fake: FakeRouter, router_url: str, clock: Clock
) -> None:
    def waited() -> Any:
        return asked(router_url, clock, lambda client: client.wait_for_workers(), [])

    assert waited() is False
    fake.scripted["/readiness"] = [Scripted(503, {"status": "not ready"})] * 3
    assert waited() is True
    fake.scripted["/readiness"] = [Scripted(404), Scripted(500)]
    assert waited() is False
