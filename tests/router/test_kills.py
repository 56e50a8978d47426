"""Workers die, drain and hang under two hundred calls: every call ends well or is told, none runs twice."""

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from tests.router.fleet_processes import (
    Answer,
    SimulatedWorker,
    attempts_by_call,
    greedy,
    load,
    until_running,
    workers,
)
from tests.router.running import router, until

CALLS = 200
TOKENS = 150
"""At 10 ms a token, a reply takes a second and a half or more: long enough to be killed in."""

HELD = CALLS // 8
"""Calls that a worker must hold before something happens to it: fewer than its share, for slow machines."""


def bodies(**more: Any) -> list[dict[str, Any]]:
    return [greedy(number, TOKENS) | more for number in range(CALLS)]


def expected(worker: SimulatedWorker) -> list[list[int]]:
    """Return the ids that every worker gives as the reply to each of `bodies`."""
    batch = {
        "text": [body["text"] for body in bodies()],
        "sampling_params": greedy(0, TOKENS)["sampling_params"],
    }
    return [reply["output_ids"] for reply in worker.client.post("/generate", json=batch).json()]


def assert_right(answers: Sequence[Answer], ids: Sequence[list[int]]) -> None:
    for number, (answer, sampled) in enumerate(zip(answers, ids, strict=True)):
        assert answer.status == 200, answer
        reply = answer.json()
        assert reply["output_ids"] == sampled
        assert [entry[1] for entry in reply["meta_info"]["output_token_logprobs"]] == sampled
        assert reply["meta_info"]["id"] == f"call-{number}"


def assert_none_ran_twice(fleet: Sequence[SimulatedWorker]) -> None:
    for name, attempts in attempts_by_call(fleet).items():
        finished = sum(counts["finished"] for counts in attempts)
        aborted = sum(counts["aborted"] for counts in attempts)
        received = sum(counts["received"] for counts in attempts)
        assert finished <= 1, name
        assert received == finished + aborted, name


@contextlib.contextmanager
def fleet_behind_a_router(
    number: int, **settings: Any
) -> Iterator[tuple[list[SimulatedWorker], httpx.Client]]:
    with (
        workers(number) as fleet,
        router(*(worker.url for worker in fleet), **settings) as client,
    ):
        yield fleet, client


def url_of(client: httpx.Client) -> str:
    return str(client.base_url)


def test_calls_of_a_worker_that_is_killed_are_answered_by_the_others() -> None:
    with fleet_behind_a_router(3) as (fleet, client):
        ids = expected(fleet[1])
        victim, *others = fleet

        def kill() -> None:
            until_running(victim, HELD)
            victim.process.kill()

        answers = load(url_of(client), bodies(), after=kill)
        assert_right(answers, ids)
        assert sum(answer.attempts > 1 for answer in answers) >= HELD
        assert_none_ran_twice(others)


def test_worker_that_drains_after_sigterm_finishes_its_calls_and_the_rest_go_elsewhere() -> None:
    with fleet_behind_a_router(2) as (fleet, client):
        ids = expected(fleet[1])
        victim, other = fleet

        def drain() -> None:
            until_running(victim, HELD)
            victim.process.send_signal(signal.SIGTERM)

        assert_right(load(url_of(client), bodies(), after=drain), ids)
        assert victim.process.wait(timeout=30) == 0
        assert_right(load(url_of(client), bodies(), after=lambda: None), ids)
        assert_none_ran_twice([other])


def test_calls_of_a_worker_that_hangs_are_answered_by_the_others_and_aborted_when_it_wakes() -> None:
    with fleet_behind_a_router(3, first_byte_timeout_secs=8.0, retry_max_retries=10) as (fleet, client):
        ids = expected(fleet[1])
        victim = fleet[0]

        def hang() -> None:
            until_running(victim, HELD)
            victim.process.send_signal(signal.SIGSTOP)

        answers = load(url_of(client), bodies(), after=hang)
        assert_right(answers, ids)
        victim.process.send_signal(signal.SIGCONT)
        until(lambda: all(worker.running() == 0 for worker in fleet))
        assert_none_ran_twice(fleet)


def test_stream_of_a_worker_that_is_killed_breaks_off_and_is_not_sent_again() -> None:
    with fleet_behind_a_router(2) as (fleet, client):
        ids = expected(fleet[1])
        victim, other = fleet

        def kill() -> None:
            until_running(victim, HELD)
            until_running(other, HELD)
            victim.process.kill()

        answers = load(url_of(client), bodies(stream=True), after=kill)
        broken = [answer for answer in answers if answer.status == 0]
        assert len(broken) >= HELD
        for answer, sampled in zip(answers, ids, strict=True):
            events = [line.removeprefix(b"data: ") for line in answer.body.split(b"\n\n") if line]
            if answer.status == 200:
                assert events.pop() == b"[DONE]"
                assert json.loads(events[-1])["output_ids"] == sampled
            else:
                assert b"[DONE]" not in events
                assert answer.attempts <= 1
        assert all(len(attempts) == 1 for attempts in attempts_by_call([other]).values())


def test_reply_that_breaks_off_half_way_is_sampled_again_elsewhere() -> None:
    with fleet_behind_a_router(2) as (fleet, client):
        fleet[0].misbehave("die_mid_reply", calls=1)
        answers = load(url_of(client), [greedy(1, 5)], after=lambda: None)
        assert answers[0].status == 200
        assert answers[0].attempts == 2
        assert answers[0].json()["meta_info"]["id"] == "call-1"
