"""Real SGLang workers hang, drain and die under load: what the simulated ones prove, proven on real ones."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import ENVIRONMENT
from tests.engine.environment import EngineEnvironment
from tests.engine.workers import EngineWorker, running_workers
from tests.router.fleet_processes import Answer, load
from tests.router.running import router, until

pytestmark = pytest.mark.engine

CALLS = 36
TOKENS = 96

HELD = 4
"""Calls that a worker must hold before something happens to it: few, for slow machines."""


def bodies(**more: Any) -> list[dict[str, Any]]:
    return [
        {
            "text": f"Problem {number}: ",
            "rid": f"call-{number}",
            "sampling_params": {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True},
            "return_logprob": True,
            **more,
        }
        for number in range(CALLS)
    ]


@contextlib.contextmanager
def own_workers(config: pytest.Config, folder: Any) -> Iterator[tuple[EngineWorker, ...]]:
    """Run two workers that may be killed, with the same weights: their greedy replies are equal."""
    environment = config.stash[ENVIRONMENT]
    assert isinstance(environment, EngineEnvironment), environment
    with running_workers(environment, [environment.models[0]] * 2, log_folder=folder) as workers:
        yield workers


def running(worker: EngineWorker) -> int:
    loads = httpx.get(f"{worker.url}/v1/loads", params={"include": "core"}, trust_env=False, timeout=20)
    return sum(each["num_running_reqs"] + each["num_waiting_reqs"] for each in loads.json()["loads"])


def assert_whole(answers: list[Answer]) -> None:
    for number, answer in enumerate(answers):
        assert answer.status == 200, answer
        reply = answer.json()
        sampled = reply["output_ids"]
        assert len(sampled) == reply["meta_info"]["completion_tokens"] == TOKENS
        assert [entry[1] for entry in reply["meta_info"]["output_token_logprobs"]] == sampled
        assert reply["meta_info"]["id"] == f"call-{number}"


def test_real_workers_hang_drain_and_die_and_no_call_is_lost(
    pytestconfig: pytest.Config, tmp_path: Any
) -> None:
    with (
        own_workers(pytestconfig, tmp_path) as (first, second),
        router(first.url, second.url, first_byte_timeout_secs=12, retry_max_retries=10) as client,
    ):
        url = str(client.base_url)

        def hang() -> None:
            until(lambda: running(first) >= HELD)
            first.signal(signal.SIGSTOP)

        assert_whole(load(url, bodies(), after=hang))
        first.signal(signal.SIGCONT)
        until(lambda: running(first) == 0)  # it has heard of the aborts

        def drain() -> None:
            until(lambda: running(second) >= HELD)
            second.process.send_signal(signal.SIGTERM)

        assert_whole(load(url, bodies(), after=drain))
        second.process.wait(timeout=60)
        assert_whole(load(url, bodies(), after=lambda: None))

        def kill() -> None:
            until(lambda: running(first) >= HELD)
            first.signal(signal.SIGKILL)

        long = {"temperature": 0, "max_new_tokens": 10 * TOKENS, "ignore_eos": True}
        answers = load(url, bodies(stream=True, sampling_params=long), after=kill)
        assert sum(answer.status in (0, 502) for answer in answers) >= HELD
        assert all((answer.status == 200) == (b"[DONE]" in answer.body) for answer in answers)
        assert client.post("/generate", json=bodies()[0]).status_code in (502, 503)
