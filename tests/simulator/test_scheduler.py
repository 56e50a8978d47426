import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from espalier.simulator.generation import Generation, Stage
from espalier.simulator.latency import LatencyModel
from espalier.simulator.params import ValueProblem
from espalier.simulator.requests import check_form, read_request
from espalier.simulator.scheduler import PauseMode
from espalier.simulator.settings import WorkerSettings
from espalier.simulator.worker import Worker
from tests.simulator.workers import INSTANT, SLOW


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await test()

    asyncio.run(run())


def generations(worker: Worker, news: asyncio.Event | None = None, **body: Any) -> list[Generation]:
    request = read_request(check_form({"input_ids": [50, 51], **body}), vocabulary=1500, skip_tokenizer=False)
    return worker.generations(request, news or asyncio.Event())


def stage_of(generation: Generation) -> Stage:
    return generation.stage


def test_latency_model_gives_whole_steps_and_keeps_the_rest() -> None:
    model = LatencyModel(prefill_tokens_per_s=1000, decode_step_s=0.01, decode_step_per_request_s=0.005)
    steps, rest = model.steps(0.055, running=2)
    assert (steps, round(rest, 6)) == (2, 0.015)
    assert model.prefill_s(500) == 0.5
    assert not model.decodes_at_once


def test_without_latency_a_generation_is_at_its_end_at_once() -> None:
    async def test() -> None:
        worker = Worker(WorkerSettings(**INSTANT))
        (generation,) = generations(worker)
        worker.scheduler.submit([generation])
        assert generation.stage is Stage.FINISHED
        assert worker.scheduler.is_idle

    in_loop(test)


def test_tokens_come_as_the_clock_moves_on() -> None:
    async def test() -> None:
        clock = Clock()
        worker = Worker(WorkerSettings(**INSTANT | {"decode_step_s": 0.1, "slice_s": 0.001}), clock=clock)
        news = asyncio.Event()
        params = {"max_new_tokens": 10, "ignore_eos": True}
        (generation,) = generations(worker, news, sampling_params=params)
        worker.scheduler.submit([generation])

        async def after(seconds: float, tokens: int) -> None:
            clock.now += seconds
            async with asyncio.timeout(5):
                while len(generation.output_ids) < tokens:
                    news.clear()
                    await news.wait()
            assert len(generation.output_ids) == tokens

        await after(0.15, 1)
        await after(0.1, 2)
        await after(0.2, 4)
        await after(0.2, 6)
        await after(100.0, 8)  # the process was stopped, and sampled nothing meanwhile
        await after(0.2, 10)
        assert generation.finish_reason == {"type": "length", "length": 10}

    in_loop(test)


def test_prompts_are_read_one_after_the_other_and_what_is_cached_costs_nothing() -> None:
    async def test() -> None:
        clock = Clock()
        settings = INSTANT | {"prefill_tokens_per_s": 10.0, "decode_step_s": 0.1}
        worker = Worker(WorkerSettings(**settings), clock=clock)
        prompts = [[60, 61, 62], [70, 71], [60, 61, 62]]
        batch = generations(worker, input_ids=prompts)
        worker.scheduler.submit(batch)
        assert [round(each.ready_at - clock.now, 6) for each in batch] == [0.3, 0.5, 0.6]
        worker.scheduler.abort_all()

    in_loop(test)


def test_idle_time_is_no_credit_for_the_next_generation() -> None:
    async def test() -> None:
        clock = Clock()
        worker = Worker(WorkerSettings(**INSTANT | {"decode_step_s": 0.1}), clock=clock)
        clock.now += 3600
        (generation,) = generations(worker)
        worker.scheduler.submit([generation])
        assert generation.output_ids == []
        worker.scheduler.abort_all()

    in_loop(test)


def test_generation_that_comes_during_an_update_is_held_and_gets_the_new_weights() -> None:
    async def test() -> None:
        worker = Worker(WorkerSettings(**SLOW), clock=Clock())  # time stands still: nothing ends by itself
        (first,) = generations(worker)
        worker.scheduler.submit([first])
        update = asyncio.create_task(worker.scheduler.change_weights("v2"))
        await asyncio.sleep(0)
        (second,) = generations(worker, sampling_params={"max_new_tokens": 1})
        worker.scheduler.submit([second])
        assert stage_of(second) is Stage.HELD
        worker.scheduler.abort_generation(first)
        await update
        assert (first.weight_version, second.weight_version) == ("default", "v2")
        assert stage_of(second) is Stage.RUNNING
        worker.scheduler.abort_all()

    in_loop(test)


def test_refused_call_leaves_none_of_its_generations_behind() -> None:
    async def test() -> None:
        worker = Worker(WorkerSettings(**SLOW))
        worker.scheduler.submit(generations(worker, rid="a"))
        batch = generations(worker, rid=["b", "a"], input_ids=[[50], [51]])
        with pytest.raises(ValueProblem, match="Duplicate request ID detected: a"):
            worker.scheduler.submit(batch)
        assert worker.scheduler.load().running == 1
        worker.scheduler.abort_all()
        assert worker.scheduler.is_idle

    in_loop(test)


def test_retracted_generation_that_is_aborted_tells_the_tokens_so_far_in_the_reduced_form() -> None:
    async def test() -> None:
        clock = Clock()
        worker = Worker(WorkerSettings(**INSTANT | {"decode_step_s": 0.1}), clock=clock)
        (generation,) = generations(worker, return_logprob=True)
        worker.scheduler.submit([generation])
        generation.advance(3)
        worker.scheduler.pause(PauseMode.RETRACT)
        worker.scheduler.abort_all()
        reply = generation.view(0, 3, with_text=True, is_first=True)
        assert len(reply["output_ids"]) == len(reply["meta_info"]["output_token_logprobs"]) == 3
        assert reply["meta_info"]["finish_reason"]["message"] == "Abort in waiting queue"
        assert "prompt_tokens" not in reply["meta_info"]

    in_loop(test)
