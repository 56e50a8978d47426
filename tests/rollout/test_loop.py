import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from espalier.errors import PluginError, RolloutError
from espalier.rollout import (
    DynamicFilterOutput,
    RolloutConfig,
    RolloutDataSource,
    RolloutFnTrainOutput,
    Sample,
    Status,
    generate_rollout,
    generate_rollout_async,
)
from espalier.rollout.problems import RouterUnavailable
from espalier.rollout.progress import observing
from espalier.rollout.records import SampleRecord
from espalier.rollout.timeline import Timeline
from tests.rollout.fake_router import FakeRouter, Generation, Json, Scripted

HERE = __name__
MakeConfig = Callable[..., RolloutConfig]


def rolled_out(config: RolloutConfig, rollout_id: int = 0) -> RolloutFnTrainOutput:
    return generate_rollout(config, rollout_id, RolloutDataSource(config))


def indexes(output: RolloutFnTrainOutput) -> list[int | None]:
    return [group[0].group_index for group in output.samples]


def metric(output: RolloutFnTrainOutput, name: str) -> float | None:
    assert output.metrics is not None
    return output.metrics.get(name)


def of_prompt(number: int) -> Callable[[Json], bool]:
    return lambda payload: f"question {number} ?" in payload["text"]


def test_a_rollout_returns_whole_groups_in_order_with_rewards_and_metrics(make_config: MakeConfig) -> None:
    output = rolled_out(make_config())
    assert indexes(output) == [0, 1, 2]
    assert [sample.index for group in output.samples for sample in group] == list(range(12))
    for group in output.samples:
        for sample in group:
            assert sample.status is Status.COMPLETED
            assert sample.reward == float(r"\boxed{4}" in sample.response)
    assert metric(output, "rollout/groups_kept") == 3
    tree_hit_rate = metric(output, "rollout/tree_hit_rate")
    assert tree_hit_rate is not None
    assert 0 < tree_hit_rate < 1


def test_same_seed_same_samples_byte_for_byte(make_config: MakeConfig) -> None:
    def run(seed: int) -> list[bytes]:
        config = make_config(
            rollout_seed=seed,
            rollout_shuffle=True,
            over_sampling_batch_size=5,
            dynamic_sampling_filter_path="check_reward_nonzero_std",
        )
        source = RolloutDataSource(config)
        steps = [generate_rollout(config, step, source) for step in range(3)]
        return [
            json.dumps(vars_of(SampleRecord.of(sample, step)), sort_keys=True).encode()
            for step, output in enumerate(steps)
            for group in output.samples
            for sample in group
        ]

    first = run(1)
    assert first == run(1)
    assert len(first) == 3 * 3 * 4
    assert first != run(2)


def vars_of(record: SampleRecord) -> dict[str, Any]:
    return {name: repr(getattr(record, name)) for name in record.__struct_fields__}


def test_groups_that_the_filter_rejects_are_replaced_and_counted_by_reason(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    def generation(payload: Json) -> Generation:
        luck = payload["sampling_params"]["sampling_seed"] % 2
        return Generation([" \\boxed{4}" if luck and not of_prompt(1)(payload) else " \\boxed{5}"])

    fake.generation = generation
    config = make_config(
        dynamic_sampling_filter_path="check_reward_nonzero_std", n_samples_per_prompt=12, rollout_seed=3
    )
    output = rolled_out(config)
    assert len(output.samples) == 3
    assert 1 not in indexes(output)
    assert metric(output, "rollout/dynamic_filter/drop_zero_std_0.0") == 1
    assert metric(output, "rollout/groups_dropped") == 1


def test_a_straggler_does_not_hold_a_complete_batch_and_is_aborted(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.holds = of_prompt(0)
    config = make_config(rollout_deterministic=False, over_sampling_batch_size=4, partial_rollout=True)
    source = RolloutDataSource(config)
    began = time.monotonic()
    output, cut_off = asyncio.run(generate_rollout_async(config, 0, source.get_samples))
    assert time.monotonic() - began < 10
    assert indexes(output) == [1, 2, 3]
    held = {request["rid"] for request in fake.requests if fake.holds(request)}
    assert len(held) == 4
    assert held <= set(fake.aborted)
    assert [group[0].group_index for group in cut_off] == [0]
    assert {sample.status for sample in cut_off[0]} == {Status.ABORTED}
    assert {sample.response_length for sample in cut_off[0]} == {2}
    assert metric(output, "rollout/groups_cut_off") == 1


def test_many_requests_are_aborted_in_time_many_at_once(fake: FakeRouter, make_config: MakeConfig) -> None:
    fake.holds = lambda payload: not of_prompt(0)(payload)
    config = make_config(
        rollout_batch_size=1,
        over_sampling_batch_size=100,
        rollout_deterministic=False,
        partial_rollout=True,
    )
    source = RolloutDataSource(config)
    output, cut_off = asyncio.run(generate_rollout_async(config, 0, source.get_samples))
    assert indexes(output) == [0]
    held = [sample for group in cut_off for sample in group if sample.prompt != "user question 0 ?"]
    assert len(held) >= 300
    assert {sample.status for sample in held} == {Status.ABORTED}
    assert 16 < fake.most_aborts_running <= 64


def test_a_rollout_that_owns_the_fleet_ends_everything_with_one_call(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.holds = of_prompt(0)
    config = make_config(rollout_deterministic=False, over_sampling_batch_size=4, abort_all=True)
    assert indexes(rolled_out(config)) == [1, 2, 3]
    assert fake.aborts_of_all >= 1
    assert fake.aborted == []


def test_groups_with_a_failed_sample_are_dropped_and_replaced(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.scripted["/generate"] = [Scripted(400, {"error": {"message": "no"}})]
    output = rolled_out(make_config())
    assert len(output.samples) == 3
    assert metric(output, "rollout/failed_group/refused") == 1
    assert all(sample.status is Status.COMPLETED for group in output.samples for sample in group)


def test_a_sample_that_the_server_aborts_by_itself_is_not_trained_on(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.generation = lambda payload: Generation(["4"], "abort" if of_prompt(1)(payload) else "stop")
    output = rolled_out(make_config(dynamic_sampling_filter_path=f"{HERE}:keep_all"))
    assert indexes(output) == [0, 2, 3]
    assert metric(output, "rollout/failed_group/aborted") == 1


def test_over_sampled_surplus_is_counted(make_config: MakeConfig) -> None:
    output = rolled_out(make_config(over_sampling_batch_size=6))
    assert len(output.samples) == 3
    spare = (metric(output, "rollout/groups_surplus"), metric(output, "rollout/groups_cut_off"))
    assert sum(value or 0 for value in spare) == 3


async def raising_reward(args: RolloutConfig, sample: Sample) -> float:
    if sample.group_index == 1:
        raise ZeroDivisionError("one over none")
    return 1.0


def keep_all(args: RolloutConfig, samples: list[Sample]) -> DynamicFilterOutput:
    return DynamicFilterOutput(keep=all(sample.reward is not None for sample in samples))


def keep_none(args: RolloutConfig, samples: list[Sample]) -> DynamicFilterOutput:
    return DynamicFilterOutput(keep=False, reason="picky")


def keep_none_if_there_are_others(args: RolloutConfig, samples: list[Sample]) -> DynamicFilterOutput:
    return DynamicFilterOutput(keep=False, reason="picky", keep_when_insufficient=True)


def test_rejected_groups_are_kept_when_insufficient_instead_of_submitting_more(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    config = make_config(
        dynamic_sampling_filter_path=f"{HERE}:keep_none_if_there_are_others", over_sampling_batch_size=5
    )
    output = rolled_out(config)
    assert indexes(output) == [2, 3, 4]
    assert metric(output, "rollout/dynamic_filter/drop_picky") == 2
    assert len(fake.requests) == 5 * 4


def raising_filter(args: RolloutConfig, samples: list[Sample]) -> bool:
    raise KeyError("acc")


def forgetful_filter(args: RolloutConfig, samples: list[Sample]) -> Any:
    return None


judges_asked = threading.Event()


def slow_judge(args: RolloutConfig, sample: Sample) -> float:
    if sample.group_index == 0:
        judges_asked.set()
        time.sleep(60)
    return 1.0


def test_a_group_that_raises_is_dropped_and_the_rollout_goes_on(make_config: MakeConfig) -> None:
    output = rolled_out(make_config(custom_rm_path=f"{HERE}:raising_reward"))
    assert indexes(output) == [0, 2, 3]
    assert metric(output, "rollout/failed_group/raised_ZeroDivisionError") == 1


async def judge_who_walks_out(args: RolloutConfig, sample: Sample) -> float:
    if sample.group_index == 1:
        raise asyncio.CancelledError
    return 1.0


def test_a_plug_in_that_cancels_itself_costs_its_group_and_not_the_rollout(make_config: MakeConfig) -> None:
    output = rolled_out(make_config(custom_rm_path=f"{HERE}:judge_who_walks_out"))
    assert indexes(output) == [0, 2, 3]
    assert metric(output, "rollout/failed_group/plugin_cancelled") == 1


def test_each_kind_of_failure_is_counted_by_itself_and_its_first_is_logged(
    fake: FakeRouter, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Scripted(200, {"meta_info": {"finish_reason": {"type": "stop"}}})
    fake.scripted["/generate"] = [Scripted(400, "first"), Scripted(400, "second"), bad, Scripted(500, "no")]
    output = rolled_out(make_config(n_samples_per_prompt=1, sglang_server_concurrency=1))
    assert metric(output, "rollout/failed_group/refused") == 2
    assert metric(output, "rollout/failed_group/bad_reply") == 1
    assert metric(output, "rollout/failed_group/upstream_error") == 1
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 3
    assert "answered 400: first" in logged[0]


def test_token_rate_counts_dropped_groups_and_not_the_time_of_aborts(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.holds = of_prompt(0)
    config = make_config(
        rollout_deterministic=False,
        over_sampling_batch_size=5,
        dynamic_sampling_filter_path=f"{HERE}:drop_prompt_1",
    )
    fake.generation = lambda _: Generation([" \\boxed{4}"])
    output = rolled_out(config)
    assert metric(output, "rollout/groups_dropped") == 1
    seconds = (metric(output, "perf/rollout_time") or 0) - (metric(output, "perf/abort_time") or 0)
    assert metric(output, "perf/tokens_per_sec") == pytest.approx(4 * 4 * 2 / seconds, rel=0.01)


def test_a_router_without_workers_is_waited_for_and_costs_no_group(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.workers = 0
    heard = Listener()
    threading.Timer(0.6, setattr, (fake, "workers", 2)).start()
    with observing(heard):
        output = rolled_out(make_config())
    assert indexes(output) == [0, 1, 2]
    assert metric(output, "rollout/groups_dropped") == 0
    assert heard.notices[0].startswith("the router has no worker to send a call to: There are no workers")
    assert heard.notices[1].startswith("there are workers again after ")


def test_a_router_that_stays_without_workers_ends_the_rollout(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.workers = 0
    with pytest.raises(RouterUnavailable, match=r"no worker .* for \d+ s now.*--router-patience-s"):
        rolled_out(make_config(router_patience_s=0.5, max_dropped_groups=1))


async def own_client(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    raise ConnectionError("Connection refused")


def test_a_dead_router_is_noticed_for_generate_functions_with_clients_of_their_own(
    make_config: MakeConfig,
) -> None:
    config = make_config(
        router_url="http://127.0.0.1:9",
        custom_generate_function_path=f"{HERE}:own_client",
        router_patience_s=0.5,
    )
    with pytest.raises(RouterUnavailable, match=r"router is unreachable, .*Connection refused"):
        rolled_out(config)


def drop_prompt_1(args: RolloutConfig, samples: list[Sample]) -> bool:
    return samples[0].group_index != 1


class Listener:
    """Remembers what a person would have been told."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def on_group_kept(self, samples: list[Sample]) -> None: ...

    def on_group_dropped(self, samples: list[Sample], reason: str, problem: str | None) -> None: ...

    def on_tokens(self, count: int) -> None: ...

    def on_timeline(self, timeline: Timeline) -> None: ...

    def on_notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_filter_that_drops_everything_ends_in_an_error(
    fake: FakeRouter, make_config: MakeConfig, deterministic: bool
) -> None:
    config = make_config(
        dynamic_sampling_filter_path=f"{HERE}.keep_none",
        max_dropped_groups=7,
        rollout_deterministic=deterministic,
    )
    with pytest.raises(RolloutError, match=r"all dropped \(\d+ picky\).*--max-dropped-groups"):
        rolled_out(config)
    assert len(fake.requests) <= 4 * 12


def test_an_error_tells_the_last_problem(fake: FakeRouter, make_config: MakeConfig) -> None:
    fake.scripted["/generate"] = [Scripted(400, {"error": {"message": "bad temperature"}})] * 400
    with pytest.raises(
        RolloutError, match=r"\d+ refused\); the last problem: .* answered 400: bad temperature"
    ):
        rolled_out(make_config(max_dropped_groups=4, n_samples_per_prompt=1))
    config = make_config(dynamic_sampling_filter_path=f"{HERE}:raising_filter", max_dropped_groups=3)
    fake.scripted.clear()
    with pytest.raises(RolloutError, match=r"\d+ filter_raised.*KeyError: 'acc'"):
        rolled_out(config)


def test_a_filter_that_returns_nothing_ends_the_rollout(make_config: MakeConfig) -> None:
    with pytest.raises(PluginError, match="forgetful_filter"):
        rolled_out(make_config(dynamic_sampling_filter_path=f"{HERE}:forgetful_filter"))


def test_a_slow_judge_does_not_hold_a_complete_batch(make_config: MakeConfig) -> None:
    config = make_config(
        custom_rm_path=f"{HERE}:slow_judge",
        rollout_deterministic=False,
        over_sampling_batch_size=4,
        reward_timeout_s=50.0,
    )
    began = time.monotonic()
    output = rolled_out(config)
    assert judges_asked.is_set()
    assert indexes(output) == [1, 2, 3]
    assert time.monotonic() - began < 20


def test_no_more_samples_are_generated_at_a_time_than_allowed(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.holds = lambda _: len(fake.requests) <= 2

    async def run() -> int:
        config = make_config(sglang_server_concurrency=2)
        source = RolloutDataSource(config)
        running = asyncio.create_task(generate_rollout_async(config, 0, source.get_samples))
        async with asyncio.timeout(10):
            while len(fake.requests) < 2:  # noqa: ASYNC110  the fake lives in another thread
                await asyncio.sleep(0.005)
        at_once = len(fake.requests)
        fake.release()
        await running
        return at_once

    assert asyncio.run(run()) == 2
    assert len(fake.requests) >= 12


def test_without_a_tree_the_hit_rate_is_absent(fake: FakeRouter, make_config: MakeConfig) -> None:
    fake.scripted["/radix_tree/stats"] = [Scripted(404), Scripted(500, "no")]
    assert metric(rolled_out(make_config()), "rollout/tree_hit_rate") is None
