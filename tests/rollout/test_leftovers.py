import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from espalier.errors import ConfigError
from espalier.rollout import (
    RolloutConfig,
    RolloutDataSourceWithBuffer,
    RolloutFnTrainOutput,
    Sample,
    Status,
    generate_and_rm_group,
    generate_rollout,
)
from espalier.rollout.leftovers import leftover_groups
from tests.rollout.fake_router import FakeRouter, Generation, Json, prompt_tokens, token_of

HERE = __name__
MakeConfig = Callable[..., RolloutConfig]


@pytest.fixture
def make_partial(make_config: MakeConfig) -> MakeConfig:
    def make(**changes: Any) -> RolloutConfig:
        settings = {
            "partial_rollout": True,
            "rollout_deterministic": False,
            "over_sampling_batch_size": 4,
            "rollout_max_response_len": 10,
        }
        return make_config(**{**settings, **changes})

    return make


def asks_about(number: int) -> Callable[[Json], bool]:
    """Tell the requests for a prompt, which come as text at first and as tokens when resumed."""
    prompt = prompt_tokens(f"user question {number} ?")
    return lambda payload: (
        payload.get("input_ids", prompt_tokens(payload.get("text", "")))[: len(prompt)] == prompt
    )


def with_weights(version: str) -> Callable[[Json], Json]:
    def change(reply: Json) -> Json:
        meta = reply["meta_info"]
        spans = [{**span, "version": version} for span in meta["weight_versions"]]
        return {**reply, "meta_info": {**meta, "weight_version": version, "weight_versions": spans}}

    return change


def group_of(output: RolloutFnTrainOutput, number: int) -> list[Sample]:
    [group] = [group for group in output.samples if group[0].group_index == number]
    return group


def cut_off_and_resumed(fake: FakeRouter, config: RolloutConfig) -> list[Sample]:
    """Cut the group of prompt 0 off in rollout 3, two tokens in; return it as rollout 4 finishes it."""
    source = RolloutDataSourceWithBuffer(config)
    fake.holds = asks_about(0)
    fake.change_reply = with_weights("old")
    first = generate_rollout(config, 3, source)
    assert 0 not in [group[0].group_index for group in first.samples]
    fake.holds = lambda _: False
    fake.change_reply = with_weights("new")
    fake.requests.clear()
    fake.generation = lambda _: Generation([" \\boxed{4}"])
    return group_of(generate_rollout(config, 4, source), 0)


def test_a_sample_that_was_cut_off_is_resumed_from_exactly_its_tokens(
    fake: FakeRouter, make_partial: MakeConfig
) -> None:
    group = cut_off_and_resumed(fake, make_partial())
    requests = [request for request in fake.requests if asks_about(0)(request)]
    assert len(requests) == 4
    prompt = prompt_tokens("user question 0 ?")
    for sample in group:
        begun, rest = sample.tokens[len(prompt) : -2], sample.tokens[-2:]
        assert begun == [token_of("The"), token_of(" answer")]
        assert rest == [token_of(" \\boxed{4}"), 2]
        assert prompt + begun in [request["input_ids"] for request in requests]
        assert sample.response == "The answer \\boxed{4}"
        assert (sample.status, sample.reward) == (Status.COMPLETED, 1.0)
        assert sample.loss_mask == [1, 1, 1, 1]
        assert sample.rollout_log_probs is not None
        assert len(sample.rollout_log_probs) == sample.response_length == 4
    assert {request["sampling_params"]["max_new_tokens"] for request in requests} == {8}


def test_a_resumed_sample_tells_both_weight_versions_and_where_it_began(
    fake: FakeRouter, make_partial: MakeConfig
) -> None:
    for sample in cut_off_and_resumed(fake, make_partial()):
        assert sample.weight_versions == ["old", "new"]
        assert [(span.version, span.start, span.end) for span in sample.weight_spans] == [
            ("old", 0, 2),
            ("new", 2, 4),
        ]
        assert sample.metadata["start_rollout_id"] == 3


def test_off_policy_tokens_are_masked_on_request(fake: FakeRouter, make_partial: MakeConfig) -> None:
    for sample in cut_off_and_resumed(fake, make_partial(mask_offpolicy_in_partial_rollout=True)):
        assert sample.loss_mask == [0, 0, 1, 1]
        assert sample.effective_response_length == 2


def test_a_rollout_counts_what_it_gives_back_and_what_it_resumed(
    fake: FakeRouter, make_partial: MakeConfig
) -> None:
    config = make_partial()
    source = RolloutDataSourceWithBuffer(config)
    fake.holds = asks_about(0)
    first = generate_rollout(config, 0, source)
    fake.holds = lambda _: False
    second = generate_rollout(config, 1, source)
    assert first.metrics is not None
    assert second.metrics is not None
    assert (first.metrics["rollout/groups_given_back"], first.metrics["rollout/resumed_samples"]) == (1, 0)
    assert second.metrics["rollout/resumed_samples"] == sum(
        "start_rollout_id" in sample.metadata for group in second.samples for sample in group
    )


def test_a_group_that_somebody_else_aborts_is_gone_on_with_later(
    fake: FakeRouter, make_partial: MakeConfig
) -> None:
    fake.generation = lambda payload: Generation(["4"], "abort" if asks_about(1)(payload) else "stop")
    config = make_partial()
    source = RolloutDataSourceWithBuffer(config)
    generate_rollout(config, 0, source)
    [group] = [group for group in source.buffer if group[0].group_index == 1]
    assert {sample.status for sample in group} == {Status.ABORTED}
    assert {sample.response_length for sample in group} == {1}


def test_without_partial_rollouts_nothing_is_given_back(fake: FakeRouter, make_partial: MakeConfig) -> None:
    fake.holds = asks_about(0)
    config = make_partial(partial_rollout=False)
    source = RolloutDataSourceWithBuffer(config)
    generate_rollout(config, 0, source)
    assert source.buffer == []


calls: list[int | None] = []


async def instant(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    calls.append(sample.group_index)
    sample.tokens, sample.response_length, sample.status = [1, 2], 1, Status.COMPLETED
    return sample


async def instant_reward(args: RolloutConfig, sample: Sample) -> float:
    return 1.0


def test_complete_groups_beyond_the_batch_are_kept_on_request(make_partial: MakeConfig) -> None:
    config = make_partial(
        partial_rollout=False,
        keep_surplus_groups=True,
        over_sampling_batch_size=9,
        custom_generate_function_path=f"{HERE}:instant",
        custom_rm_path=f"{HERE}:instant_reward",
    )
    source = RolloutDataSourceWithBuffer(config)
    calls.clear()
    batches = [generate_rollout(config, step, source).samples for step in range(3)]
    numbers = [[group[0].group_index for group in batch] for batch in batches]
    assert numbers == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert set(calls) == set(range(15))
    assert len(calls) == 15 * 4
    [group, *_] = batches[2]
    assert group[0].metadata["start_rollout_id"] == 0


def finished(number: int, **fields: Any) -> list[Sample]:
    return [
        Sample(index=4 * number + at, status=Status.COMPLETED, reward=1.0, response_length=1, **fields)
        for at in range(4)
    ]


def test_what_is_given_back_is_in_order_and_worth_going_on_with(make_partial: MakeConfig) -> None:
    failed = finished(1)
    failed[2].fail("refused")
    pending = [Sample(index=8 + at) for at in range(4)]
    cut_off, surplus = [pending, failed], [finished(0), finished(3)[:3]]

    def given_back(**flags: bool) -> list[int | None]:
        config = make_partial(**flags)
        return [group[0].index for group in leftover_groups(config, 0, cut_off=cut_off, surplus=surplus)]

    assert given_back() == [8]
    assert given_back(keep_surplus_groups=True) == [0, 8]
    assert given_back(keep_surplus_groups=True, partial_rollout=False) == [0]
    assert given_back(partial_rollout=False) == []
    assert "start_rollout_id" not in pending[0].metadata


async def count_calls(args: RolloutConfig, samples: list[Sample]) -> list[float]:
    raise AssertionError("these have their rewards")


def test_a_finished_group_is_neither_sampled_nor_graded_again(
    fake: FakeRouter, make_partial: MakeConfig
) -> None:
    config = make_partial(group_rm=True, custom_rm_path=f"{HERE}:count_calls")
    group = finished(0)
    assert asyncio.run(generate_and_rm_group(config, group, config.sampling_params())) == group
    assert fake.requests == []
    assert {sample.reward for sample in group} == {1.0}


def test_a_data_source_without_a_buffer_is_told_at_the_start(
    fake: FakeRouter, make_partial: MakeConfig
) -> None:
    config = make_partial()

    class NoBuffer:
        def get_samples(self, num_samples: int) -> list[list[Sample]]:
            raise AssertionError(f"not asked for {num_samples}")

        def __len__(self) -> int:
            return 1

    with pytest.raises(ConfigError, match=r"--partial-rollout needs .*add_samples\(groups\): NoBuffer"):
        generate_rollout(config, 0, NoBuffer())
    assert fake.requests == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partial_rollout": False, "mask_offpolicy_in_partial_rollout": True}, "needs --partial-rollout"),
        ({"keep_surplus_groups": True, "mask_offpolicy_in_partial_rollout": True}, "choose one"),
        ({"rollout_deterministic": True}, "--partial-rollout and --rollout-deterministic exclude"),
    ],
)
def test_settings_that_contradict_each_other_are_told(
    make_partial: MakeConfig, changes: dict[str, bool], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_partial(**changes)
