import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from espalier.errors import ConfigError, PluginError, RolloutError
from espalier.rollout import (
    DynamicFilterOutput,
    RolloutConfig,
    RolloutDataSource,
    RolloutDataSourceWithBuffer,
    RolloutFnEvalOutput,
    RolloutFnTrainOutput,
    Sample,
)
from espalier.rollout.command import run
from espalier.rollout.fully_async import FullyAsyncRollout
from tests.rollout.fake_router import FakeRouter, Generation, Json, Scripted
from tests.rollout.test_leftovers import asks_about, with_weights

HERE = __name__
MakeConfig = Callable[..., RolloutConfig]


@pytest.fixture
def make_async(make_config: MakeConfig) -> MakeConfig:
    def make(**changes: Any) -> RolloutConfig:
        settings = {"rollout_deterministic": False, "rollout_function_path": "fully_async"}
        return make_config(**{**settings, **changes})

    return make


@pytest.fixture
def rollout() -> Iterator[FullyAsyncRollout]:
    rollout = FullyAsyncRollout()
    yield rollout
    rollout.close()


def taken(
    rollout: FullyAsyncRollout, source: RolloutDataSource, config: RolloutConfig
) -> RolloutFnTrainOutput:
    output = rollout(config, 0, source)
    assert isinstance(output, RolloutFnTrainOutput)
    return output


def numbers(output: RolloutFnTrainOutput) -> list[int | None]:
    return [group[0].group_index for group in output.samples]


def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that happens in another thread."""
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_generation_goes_on_between_rollouts_up_to_its_bound(
    fake: FakeRouter, make_async: MakeConfig, rollout: FullyAsyncRollout
) -> None:
    config = make_async(fully_async_max_groups=5)
    source = RolloutDataSource(config)
    first = taken(rollout, source, config)
    until(lambda: fake.finished == (3 + 5) * 4)
    second = taken(rollout, source, config)
    assert len({*numbers(first), *numbers(second)}) == 6
    until(lambda: fake.finished == (6 + 5) * 4)
    assert len(fake.requests) == fake.finished
    assert second.metrics is not None
    assert (second.metrics["rollout/groups_waiting"] or 0) <= 2


def test_a_straggler_does_not_hold_the_rollouts(
    fake: FakeRouter, make_async: MakeConfig, rollout: FullyAsyncRollout
) -> None:
    fake.holds = asks_about(0)
    config = make_async()
    source = RolloutDataSource(config)
    for _ in range(3):
        assert 0 not in numbers(taken(rollout, source, config))
    assert fake.aborted == []
    fake.holds = lambda _: False
    fake.release()


@pytest.mark.parametrize("policy", ["drop", "retry"])
def test_groups_of_weights_that_are_too_old_are_dropped_or_generated_again(
    fake: FakeRouter, make_async: MakeConfig, rollout: FullyAsyncRollout, policy: str
) -> None:
    config = make_async(fully_async_max_groups=5, max_weight_staleness=1, stale_group_policy=policy)
    source = RolloutDataSource(config)
    fake.change_reply = with_weights("1")
    taken(rollout, source, config)
    until(lambda: fake.finished == 8 * 4)
    fake.change_reply = with_weights("3")
    fake.scripted["/model_info"] = [Scripted(200, {"weight_version": "3"})]
    output = taken(rollout, source, config)
    samples = [sample for group in output.samples for sample in group]
    assert {version for sample in samples for version in sample.weight_versions} == {"3"}
    assert output.metrics is not None
    assert 3 <= (output.metrics["rollout/groups_stale"] or 0) <= 5
    assert output.metrics["rollout/staleness/max"] == 0
    assert min(number or 0 for number in numbers(output)) >= (3 if policy == "retry" else 8)
    if policy == "retry":
        assert max(number or 0 for number in numbers(output)) < 8
        assert all(len(sample.weight_versions) == 1 for sample in samples)


def test_groups_within_the_limit_are_used_and_their_age_is_told(
    fake: FakeRouter, make_async: MakeConfig, rollout: FullyAsyncRollout
) -> None:
    config = make_async(fully_async_max_groups=5, max_weight_staleness=2)
    source = RolloutDataSource(config)
    fake.change_reply = with_weights("1")
    taken(rollout, source, config)
    until(lambda: fake.finished == 8 * 4)
    fake.scripted["/model_info"] = [Scripted(200, {"weight_version": "3"})]
    output = taken(rollout, source, config)
    assert output.metrics is not None
    assert (output.metrics["rollout/groups_stale"], output.metrics["rollout/staleness/max"]) == (0, 2)


@pytest.mark.parametrize("partial", [True, False])
def test_groups_that_a_weight_update_aborts_are_begun_again_or_gone_on_with(
    fake: FakeRouter, make_async: MakeConfig, rollout: FullyAsyncRollout, partial: bool
) -> None:
    begun: set[str] = set()

    def generation(payload: Json) -> Generation:
        if asks_about(1)(payload) and len(begun) < 4:
            begun.add(payload["rid"])
            return Generation(["Half"], "abort")
        return Generation([" \\boxed{4}"])

    fake.generation = generation
    config = make_async(partial_rollout=partial, fully_async_max_groups=3)
    source = RolloutDataSourceWithBuffer(config)
    output = taken(rollout, source, config)
    assert numbers(output) == [0, 1, 2]
    response = "Half \\boxed{4}" if partial else " \\boxed{4}"
    assert {sample.response for sample in output.samples[1]} == {response}


def test_what_is_under_way_is_given_back_at_the_end(
    fake: FakeRouter, make_async: MakeConfig, rollout: FullyAsyncRollout
) -> None:
    fake.holds = lambda payload: not any(asks_about(number)(payload) for number in range(3))
    config = make_async(partial_rollout=True, fully_async_max_groups=5)
    source = RolloutDataSourceWithBuffer(config)
    taken(rollout, source, config)
    until(lambda: len(fake.requests) == (3 + 5) * 4)
    rollout.close()
    assert [group[0].group_index for group in source.buffer] == [3, 4, 5, 6, 7]
    assert {sample.response_length for group in source.buffer for sample in group} == {2}
    rollout.close()


def keep_none(args: RolloutConfig, samples: list[Sample]) -> DynamicFilterOutput:
    return DynamicFilterOutput(keep=False, reason="picky")


def drop_prompt_1(args: RolloutConfig, samples: list[Sample]) -> bool:
    return samples[0].group_index != 1


def test_a_filter_that_drops_everything_ends_in_an_error(
    make_async: MakeConfig, rollout: FullyAsyncRollout
) -> None:
    config = make_async(dynamic_sampling_filter_path=f"{HERE}:keep_none", max_dropped_groups=7)
    with pytest.raises(RolloutError, match=r"last 7 groups were all dropped, picky.*--max-dropped-groups"):
        rollout(config, 0, RolloutDataSource(config))


def test_dropped_and_failed_groups_are_counted(
    fake: FakeRouter, make_async: MakeConfig, rollout: FullyAsyncRollout
) -> None:
    fake.scripted["/generate"] = [Scripted(400, "no")]
    config = make_async(dynamic_sampling_filter_path=f"{HERE}:drop_prompt_1", sglang_server_concurrency=1)
    source = RolloutDataSource(config)
    metrics = taken(rollout, source, config).metrics or {}
    assert metrics["rollout/failed_group/refused"] == 1
    assert metrics["rollout/dynamic_filter/drop_unspecified"] == 1
    assert metrics["rollout/groups_dropped"] == 2


def test_the_command_runs_it_evaluates_beside_it_and_ends_it(
    fake: FakeRouter, make_async: MakeConfig
) -> None:
    config = make_async(num_rollout=3, eval_interval=2)
    config = make_async(num_rollout=3, eval_interval=2, eval_prompt_data=("all", str(config.prompt_data)))
    assert run(config, console=Console(file=io.StringIO())) == 0
    lines = (config.output_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["rollout_id"] for line in lines] == [0, 1, 1, 2]
    sent = len(fake.requests)
    until(lambda: fake.finished == sent)


def test_evaluation_needs_no_producer(make_async: MakeConfig, rollout: FullyAsyncRollout) -> None:
    config = make_async()
    config = make_async(eval_prompt_data=("all", str(config.prompt_data)))
    output = rollout(config, 0, RolloutDataSource(config), evaluation=True)
    assert isinstance(output, RolloutFnEvalOutput)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_deterministic": True}, "--rollout-deterministic is for rollouts that begin and end"),
        ({"dynamic_sampling_filter_path": "nobody"}, "unknown dynamic filter 'nobody'"),
    ],
)
def test_what_does_not_fit_is_told_at_the_first_call(
    make_async: MakeConfig, rollout: FullyAsyncRollout, changes: dict[str, Any], message: str
) -> None:
    config = make_async(**changes)
    with pytest.raises((ConfigError, PluginError), match=message):
        rollout(config, 0, RolloutDataSource(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fully_async_max_groups": 2}, "--fully-async-max-groups 2 is below --rollout-batch-size 3"),
        ({"max_weight_staleness": -1}, "--max-weight-staleness must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_told(
    make_async: MakeConfig, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_async(**changes)


def test_what_is_under_way_at_the_end_is_in_the_saved_state(make_async: MakeConfig, tmp_path: Path) -> None:
    config = make_async(
        rollout_function_path="fully_async",
        fully_async_max_groups=6,
        num_rollout=2,
        partial_rollout=True,
        keep_surplus_groups=True,
        save=tmp_path / "state",
    )
    assert run(config, console=Console(file=io.StringIO())) == 0
    again = RolloutDataSourceWithBuffer(dataclasses.replace(config, load=config.save))
    assert again.load() == 1
    trained = {
        json.loads(line)["group_index"]
        for line in (config.output_dir / "samples.jsonl").read_text().splitlines()
    }
    rest = {group[0].group_index for group in again.get_samples(6)}
    assert trained | rest == set(range(len(trained) + 6))
