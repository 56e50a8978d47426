import copy
from typing import Any

import pytest

from espalier.rollout.sample import PrefixCacheInfo, Sample, SpecInfo, Status
from espalier.sglang import WeightSpan


class Keyed:
    def __init__(self, reward_key: str | None) -> None:
        self.reward_key = reward_key


def meta(**changes: Any) -> dict[str, Any]:
    return {
        "finish_reason": {"type": "stop", "matched": 2},
        "weight_version": "1",
        "prompt_tokens": 2,
        "cached_tokens": 1,
        "completion_tokens": 2,
        **changes,
    }


def prompted() -> Sample:
    return Sample(index=3, prompt="p", tokens=[1, 2])


def test_sampled_tokens_are_appended_with_mask_one_and_their_log_probs() -> None:
    sample = prompted()
    sample.append_response_tokens(tokens=[7, 8], log_probs=[-0.5, -0.25], meta_info=meta(), text="ab")
    assert (sample.tokens, sample.response_length) == ([1, 2, 7, 8], 2)
    assert (sample.loss_mask, sample.rollout_log_probs) == ([1, 1], [-0.5, -0.25])
    assert (sample.response, sample.status) == ("ab", Status.COMPLETED)
    assert sample.prefix_cache_info.prefix_cache_hit_rate == 0.5


def test_observations_get_mask_zero_and_take_no_log_probs() -> None:
    sample = prompted()
    sample.append_response_tokens(tokens=[7], log_probs=[-0.5])
    sample.append_response_tokens(tokens=[9, 9], trainable=False, text="obs")
    assert sample.loss_mask == [1, 0, 0]
    assert sample.effective_response_length == 1
    assert sample.status is Status.PENDING
    with pytest.raises(ValueError, match="leave log_probs out"):
        sample.append_response_tokens(tokens=[9], log_probs=[-1.0], trainable=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": [7, 8], "log_probs": [-0.5]}, "2 sampled tokens need as many"),
        ({"tokens": [7, 8], "log_probs": None}, "not none"),
        ({"tokens": [7], "log_probs": [-0.5], "meta_info": meta(finish_reason={"type": "bored"})}, "bored"),
        ({"tokens": [7], "log_probs": [-0.5], "meta_info": {"weight_version": 5}}, "meta_info is not"),
    ],
)
def test_a_failed_append_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    sample = prompted()
    sample.append_response_tokens(tokens=[5], log_probs=[-1.0])
    before = copy.deepcopy(sample)
    with pytest.raises(ValueError, match=message):
        sample.append_response_tokens(**arguments)
    assert sample == before


def test_append_refuses_a_sample_whose_lists_do_not_fit() -> None:
    sample = Sample(tokens=[1, 7], response_length=1, loss_mask=[1, 1], rollout_log_probs=[-1.0])
    with pytest.raises(ValueError, match="loss_mask has 2 entries for 1 tokens"):
        sample.append_response_tokens(tokens=[8], log_probs=[-1.0])


@pytest.mark.parametrize(
    ("finish", "status"),
    [("length", Status.TRUNCATED), ("abort", Status.ABORTED), ("stop", Status.COMPLETED)],
)
def test_finish_reason_sets_the_status(finish: str, status: Status) -> None:
    sample = prompted()
    sample.append_response_tokens(
        tokens=[7], log_probs=[-1.0], meta_info=meta(finish_reason={"type": finish})
    )
    assert sample.status is status
    other = prompted()
    other.append_response_tokens(
        tokens=[7],
        log_probs=[-1.0],
        meta_info=meta(finish_reason={"type": finish}),
        update_terminal_info=False,
    )
    assert other.status is Status.PENDING


def test_weight_spans_count_from_the_start_of_the_response() -> None:
    sample = prompted()
    sample.append_response_tokens(tokens=[7, 8], log_probs=[-1.0, -1.0], meta_info=meta())
    split = [{"version": "1", "start": 0, "end": 1}, {"version": "2", "start": 1, "end": 3}]
    sample.append_response_tokens(
        tokens=[7, 8, 9],
        log_probs=[-1.0] * 3,
        meta_info=meta(weight_version="2", weight_versions=split),
    )
    assert sample.weight_versions == ["1", "2"]
    assert sample.weight_spans == [
        WeightSpan(version="1", start=0, end=2),
        WeightSpan(version="1", start=2, end=3),
        WeightSpan(version="2", start=3, end=5),
    ]


def test_speculative_counts_are_summed_over_calls() -> None:
    sample = prompted()
    spec = {"spec_accept_token_num": 3, "spec_draft_token_num": 6, "spec_verify_ct": 1}
    for _ in range(2):
        sample.append_response_tokens(tokens=[7, 8], log_probs=[-1.0] * 2, meta_info=meta(**spec))
    assert sample.spec_info.spec_accept_rate == 0.5
    assert sample.spec_info.spec_accept_length == 2.0


def test_dict_round_trip_keeps_everything_and_unknown_keys() -> None:
    sample = prompted()
    sample.append_response_tokens(tokens=[7, 8], log_probs=[-1.0] * 2, meta_info=meta(), text="ab")
    sample.label = {"answer": 4}
    values = {**sample.to_dict(), "judge_notes": ["fine"]}
    assert values["status"] == "completed"
    back = Sample.from_dict(values)
    assert vars(back)["judge_notes"] == ["fine"]
    assert back.to_dict() == values
    assert back == sample


def test_from_dict_bears_missing_fields() -> None:
    sample = Sample.from_dict({"prompt": "p", "spec_info": None})
    assert sample == Sample(prompt="p", spec_info=SpecInfo(), prefix_cache_info=PrefixCacheInfo())


def test_reward_value_honours_the_reward_key() -> None:
    assert Sample(reward=0.5).get_reward_value(Keyed(None)) == 0.5
    assert Sample(reward={"score": -1.0, "acc": 0}).get_reward_value(Keyed("score")) == -1.0


@pytest.mark.parametrize(
    ("reward", "key", "message"),
    [
        (None, None, "has no reward"),
        ({"score": 1.0}, None, "choose one by reward_key"),
        ({"score": 1.0}, "acc", "has no 'acc'"),
        (1.0, "acc", "is the number"),
    ],
)
def test_reward_value_that_is_not_there_raises(reward: Any, key: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sample(reward=reward).get_reward_value(Keyed(key))


def test_effective_length_is_that_of_the_mask() -> None:
    assert Sample(response_length=3).effective_response_length == 3
    assert Sample(response_length=3, loss_mask=[1, 0, 1]).effective_response_length == 2


def test_nested_names_are_slimes() -> None:
    assert Sample.Status.ABORTED is Status.ABORTED
    assert Sample.SpecInfo is SpecInfo


def test_a_function_that_appends_tokens_itself_takes_over_the_rest() -> None:
    sample = prompted()
    sample.update_from_meta_info(Keyed(None), meta(spec_verify_ct=1, finish_reason={"type": "length"}))
    assert (sample.status, sample.weight_versions, sample.weight_spans) == (Status.TRUNCATED, ["1"], [])
    assert sample.prefix_cache_info.to_dict() == {"cached_tokens": 1, "total_prompt_tokens": 2}
    assert sample.spec_info.completion_token_num == 2
    before = copy.deepcopy(sample)
    with pytest.raises(ValueError, match="bored"):
        sample.update_from_meta_info(None, meta(finish_reason={"type": "bored"}))
    assert sample == before


def test_counts_take_replies_as_they_are_and_bear_unknown_ones() -> None:
    info = SpecInfo.from_dict({"spec_verify_ct": 1, "of_a_later_version": 5})
    info.add({"spec_verify_ct": 2, "completion_tokens": 6})
    assert (info.spec_verify_ct, info.spec_accept_length) == (3, 2.0)
    assert SpecInfo.from_dict(info.to_dict()) == info


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"response_length": 3}, "the response has 3 tokens, the sample 2"),
        ({"loss_mask": [1, 1]}, "loss_mask has 2 entries for 1 tokens"),
        ({"loss_mask": [2]}, "something else than 0 and 1"),
        ({"rollout_log_probs": []}, "rollout_log_probs has 0 entries for 1 tokens"),
        (
            {"weight_spans": [WeightSpan(version="1", start=0, end=2)]},
            "span 0 to 2 .* outside of the response, which has 1",
        ),
        ({"weight_spans": [WeightSpan(version="1", start=0, end=1)] * 2}, "span 0 to 1 overlaps"),
    ],
)
def test_a_sample_whose_lists_do_not_fit_is_told(changes: dict[str, Any], message: str) -> None:
    sample = prompted()
    sample.tokens = [1, 7]
    sample.response_length = 1
    sample.rollout_log_probs = [-1.0]
    sample.validate()
    vars(sample).update(changes)
    with pytest.raises(ValueError, match=message):
        sample.validate()
