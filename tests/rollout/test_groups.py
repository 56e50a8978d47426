import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from espalier.errors import PluginError
from espalier.rollout import (
    GenerateState,
    RolloutConfig,
    Sample,
    Status,
    generate,
    generate_and_rm,
    generate_and_rm_group,
)
from espalier.rollout.problems import PluginCancelled
from tests.rollout.fake_router import FakeRouter, Scripted
from tests.rollout.test_generate import generated, sample_of

HERE = __name__
MakeConfig = Callable[..., RolloutConfig]


async def self_cancelling(args: RolloutConfig, sample: Sample) -> float:
    if sample.index == 1:
        raise asyncio.CancelledError
    return 1.0


async def self_cancelling_group(args: RolloutConfig, samples: list[Sample]) -> list[float]:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    "changes",
    [
        {"custom_rm_path": f"{HERE}:self_cancelling"},
        {"custom_rm_path": f"{HERE}:self_cancelling_group", "group_rm": True},
    ],
)
def test_a_plug_in_that_cancels_itself_fails_its_group_and_cancels_nobody(
    make_config: MakeConfig, changes: dict[str, Any]
) -> None:
    config = make_config(**changes)
    group = [Sample(index=index, prompt="user question ?", label="4") for index in range(3)]
    with pytest.raises(PluginCancelled, match="raised CancelledError"):
        asyncio.run(generate_and_rm_group(config, group, config.sampling_params()))


async def hangs(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    if sample.index == 1:
        await asyncio.Event().wait()
    return await generate(args, sample, sampling_params)


def test_a_generate_function_that_hangs_fails_its_sample_and_no_other(make_config: MakeConfig) -> None:
    config = make_config(custom_generate_function_path=f"{HERE}:hangs", generate_timeout_s=1.0)
    group = [Sample(index=index, prompt="user question ?", label="4") for index in range(3)]
    done = asyncio.run(generate_and_rm_group(config, group, config.sampling_params()))
    samples = [sample for sample in done if isinstance(sample, Sample)]
    assert [sample.status for sample in samples] == [Status.COMPLETED, Status.FAILED, Status.COMPLETED]
    assert samples[1].metadata["error"] == "the generate function took longer than 1 s"


def test_a_group_that_is_cancelled_stays_cancelled(fake: FakeRouter, make_config: MakeConfig) -> None:
    fake.holds = lambda _: True

    async def run() -> bool:
        config = make_config()
        group = [Sample(index=0, prompt="user question ?", label="4")]
        task = asyncio.create_task(generate_and_rm_group(config, group, config.sampling_params()))
        async with asyncio.timeout(10):
            while not fake.requests:  # noqa: ASYNC110  the fake lives in another thread
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(run())


def test_a_failed_sample_does_not_stop_its_siblings(fake: FakeRouter, make_config: MakeConfig) -> None:
    fake.scripted["/generate"] = [Scripted(400, {"error": {"message": "no"}})]
    config = make_config()
    group = [Sample(index=index, prompt="user question ?", label="4") for index in range(4)]
    done = asyncio.run(generate_and_rm_group(config, group, config.sampling_params()))
    assert sorted(sample.status for sample in done if isinstance(sample, Sample)) == [
        *["completed"] * 3,
        "failed",
    ]


def test_deterministic_seeds_differ_between_samples_and_not_between_runs(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    def seeds(**changes: Any) -> set[Any]:
        fake.requests.clear()
        config = make_config(**changes)
        group = [Sample(index=index, prompt="user question ?", label="4") for index in range(4)]
        asyncio.run(generate_and_rm_group(config, group, config.sampling_params()))
        return {request["sampling_params"].get("sampling_seed") for request in fake.requests}

    assert len(seeds()) == 4
    assert seeds() == seeds()
    assert seeds(rollout_seed=1).isdisjoint(seeds(rollout_seed=2))
    assert seeds(rollout_deterministic=False) == {None}


async def twice(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> list[Sample]:
    """Fans a sample out, as a generate function written for slime does it."""
    state = GenerateState(args)
    assert state.sampling_params["max_new_tokens"] == 1024
    other = Sample.from_dict(sample.to_dict())
    return [await generate(args, item, sampling_params) for item in (sample, other)]


async def aware(
    args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any], evaluation: bool = False
) -> Sample:
    sample.metadata["evaluation"] = evaluation
    return await generate(args, sample, sampling_params)


async def forgetful(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> Any:
    return None


async def too_few(args: RolloutConfig, sample: Sample) -> Sample:
    return sample


def test_a_generate_function_may_fan_a_sample_out(make_config: MakeConfig) -> None:
    config = make_config(custom_generate_function_path=f"{HERE}:twice")
    result = asyncio.run(generate_and_rm(config, sample_of(), config.sampling_params()))
    assert isinstance(result, list)
    assert [sample.status for sample in result] == [Status.COMPLETED] * 2
    assert all(sample.reward is not None for sample in result)


def test_a_generate_function_is_told_of_evaluation_if_it_asks(make_config: MakeConfig) -> None:
    config = make_config(custom_generate_function_path=f"{HERE}.aware")
    result = asyncio.run(generate_and_rm(config, sample_of(), config.sampling_params(), evaluation=True))
    assert isinstance(result, Sample)
    assert result.metadata["evaluation"] is True


def test_a_generate_function_that_returns_no_sample_fails_it(make_config: MakeConfig) -> None:
    config = make_config(custom_generate_function_path=f"{HERE}:forgetful")
    assert "must return a Sample" in generated(config, sample_of()).metadata["error"]


def test_a_generate_function_with_another_signature_is_refused(make_config: MakeConfig) -> None:
    config = make_config(custom_generate_function_path=f"{HERE}:too_few")
    with pytest.raises(PluginError, match="sampling_params"):
        generated(config, sample_of())


busy = {"now": 0, "most": 0}


async def counted(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    busy["now"] += 1
    busy["most"] = max(busy["most"], busy["now"])
    sample = await generate(args, sample, sampling_params)
    busy["now"] -= 1
    return sample


def test_no_more_generate_functions_run_at_a_time_than_allowed(make_config: MakeConfig) -> None:
    busy.update(now=0, most=0)
    config = make_config(custom_generate_function_path=f"{HERE}:counted", sglang_server_concurrency=2)
    group = [Sample(index=index, prompt="user question ?", label="4") for index in range(6)]
    asyncio.run(generate_and_rm_group(config, group, config.sampling_params()))
    assert busy == {"now": 0, "most": 2}


async def reward_by_rank(args: RolloutConfig, samples: list[Sample]) -> list[float]:
    return [float(rank) for rank, _ in enumerate(samples)]


def test_group_reward_is_given_once_all_samples_are_done(make_config: MakeConfig) -> None:
    config = make_config(group_rm=True, custom_rm_path=f"{HERE}:reward_by_rank")
    group = [Sample(index=index, prompt="user question ?") for index in range(3)]
    asyncio.run(generate_and_rm_group(config, group, config.sampling_params()))
    assert [sample.reward for sample in group] == [0.0, 1.0, 2.0]
