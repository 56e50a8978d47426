import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import ConfigError, PluginError
from espalier.rollout import DynamicFilterOutput, RolloutConfig, Sample, Status
from espalier.rollout.filters import (
    MIN_REWARD_STD,
    DynamicFilter,
    MetricGatherer,
    all_of,
    any_of,
    call_dynamic_filter,
    check_no_aborted,
    check_no_truncated,
    check_reward_nonzero_std,
    dynamic_filters,
    mean_reward_within,
    none_of,
    over_sampling_filters,
    response_length_within,
    sort_by_reward_std,
    truncated_share_within,
)

with warnings.catch_warnings():
    # torch warns on import where numpy is not installed.
    warnings.simplefilter("ignore", UserWarning)
    import torch

ARGS = RolloutConfig(prompt_data=Path("unused"))

rewards_close_to_each_other = st.tuples(
    st.sampled_from([0.0, 1.0, -0.5, 1e4]),
    st.lists(st.floats(-4e-6, 4e-6), min_size=2, max_size=16),
).map(lambda drawn: [drawn[0] + delta for delta in drawn[1]])


def group(*rewards: float) -> list[Sample]:
    return [Sample(index=index, reward=reward) for index, reward in enumerate(rewards)]


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=16)
    | rewards_close_to_each_other
    | st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=16)
)
def test_nonzero_std_has_torchs_verdict(rewards: list[float]) -> None:
    """Of float32 rewards, summed in double: in single precision torch finds spread where there is none."""
    std = torch.tensor(rewards).double().std().item()
    if not math.isclose(std, MIN_REWARD_STD, rel_tol=1e-3):
        assert check_reward_nonzero_std(ARGS, group(*rewards)).keep == (std > MIN_REWARD_STD)


def test_equal_rewards_are_dropped_with_their_value_as_reason() -> None:
    assert check_reward_nonzero_std(ARGS, group(1.0, 1.0)) == DynamicFilterOutput(False, "zero_std_1.0")
    assert check_reward_nonzero_std(ARGS, group(*[349526.1875] * 3)).keep is False
    assert check_reward_nonzero_std(ARGS, group(0, 0)) == DynamicFilterOutput(False, "zero_std_0.0")
    assert check_reward_nonzero_std(ARGS, group(1.0, 0.0)).keep


def test_a_single_sample_is_dropped_with_a_reason_of_its_own() -> None:
    assert check_reward_nonzero_std(ARGS, group(1.0)) == DynamicFilterOutput(False, "single_sample")


def test_fanned_out_groups_are_flattened() -> None:
    assert check_reward_nonzero_std(ARGS, [group(1.0, 1.0), Sample(reward=0.0)]).keep


def verdict_of(function: DynamicFilter, samples: list[Sample]) -> DynamicFilterOutput:
    return call_dynamic_filter(function, ARGS, samples)


@pytest.mark.parametrize(
    ("returned", "keep"),
    [
        (True, True),
        (False, False),
        (DynamicFilterOutput(True), True),
        (torch.tensor(1.0) > 0, True),
        (DynamicFilterOutput(torch.tensor(0.0) > 0, "flat"), False),  # type: ignore[arg-type]  # as slime's
    ],
)
def test_a_filter_may_return_a_bool(returned: Any, keep: bool) -> None:
    assert call_dynamic_filter(lambda *_: returned, ARGS, []).keep is keep


def test_a_filter_that_returns_nothing_is_at_fault() -> None:
    def forgetful(args: RolloutConfig, samples: list[Sample]) -> Any:
        return None

    with pytest.raises(PluginError, match="'forgetful' must return a DynamicFilterOutput"):
        call_dynamic_filter(forgetful, ARGS, [])


@pytest.mark.parametrize(
    "returned",
    [None, 1, "yes", DynamicFilterOutput(None), torch.tensor([True, False])],  # type: ignore[arg-type]
)
def test_a_verdict_that_is_neither_yes_nor_no_is_at_fault(returned: Any) -> None:
    with pytest.raises(PluginError, match="must return a DynamicFilterOutput or a bool"):
        call_dynamic_filter(lambda *_: returned, ARGS, [])


def test_an_async_filter_is_told_to_be_written_without_async() -> None:
    async def modern(args: RolloutConfig, samples: list[Sample]) -> bool:
        return True

    with pytest.raises(PluginError, match=r"'modern' .* without async"):
        call_dynamic_filter(modern, ARGS, [])  # type: ignore[arg-type]


def test_without_a_filter_everything_is_kept() -> None:
    assert call_dynamic_filter(None, ARGS, group(1.0)).keep


def test_drops_are_counted_by_reason() -> None:
    gatherer = MetricGatherer()
    for reason in ("zero_std_0.0", "zero_std_0.0", None):
        gatherer.on_dynamic_filter_drop(reason)
    assert gatherer.collect() == {
        "rollout/dynamic_filter/drop_zero_std_0.0": 2,
        "rollout/dynamic_filter/drop_unspecified": 1,
    }


def test_unknown_filter_is_told_with_the_known_ones() -> None:
    with pytest.raises(PluginError, match=r"known are check_no_aborted, .*check_reward_nonzero_std"):
        dynamic_filters.resolve("check_reward")


def test_groups_are_sorted_by_how_far_their_rewards_lie_apart_and_stay_in_order_when_equal() -> None:
    groups = [group(0.0, 0.1), group(1.0), group(0.0, 1.0), group(1.0, 0.0), group(0.5, 0.5)]
    far, near, flat = [groups[2], groups[3]], [groups[0]], [groups[1], groups[4]]
    assert sort_by_reward_std(ARGS, groups) == far + near + flat
    assert over_sampling_filters.resolve("sort_by_reward_std") is sort_by_reward_std


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        (check_no_aborted, Status.ABORTED, "group_has_aborted"),
        (check_no_truncated, Status.TRUNCATED, "truncated"),
    ],
)
def test_groups_with_a_sample_cut_short_are_dropped(
    function: DynamicFilter, status: Status, reason: str
) -> None:
    finished = Sample(status=Status.COMPLETED)
    assert verdict_of(function, [finished]).keep
    fanned_out = call_dynamic_filter(function, ARGS, [finished, [finished, Sample(status=status)]])
    assert fanned_out == DynamicFilterOutput(keep=False, reason=reason)


def test_some_truncated_samples_may_be_borne() -> None:
    samples = [Sample(status=Status.TRUNCATED), Sample(status=Status.COMPLETED)]
    assert verdict_of(truncated_share_within(0.5), samples).keep
    assert verdict_of(truncated_share_within(0.4), samples).reason == "truncated"


@pytest.mark.parametrize(
    ("lengths", "reason"), [((2, 5), None), ((1, 5), "too_short"), ((2, 6), "too_long"), ((), None)]
)
def test_responses_must_have_an_allowed_length(lengths: tuple[int, ...], reason: str | None) -> None:
    samples = [Sample(response_length=length) for length in lengths]
    assert verdict_of(response_length_within(2, 5), samples) == DynamicFilterOutput(reason is None, reason)


def test_tokens_that_are_not_trained_on_have_no_length() -> None:
    sample = Sample(response_length=3, loss_mask=[1, 0, 0])
    assert verdict_of(response_length_within(2), [sample]).reason == "too_short"


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ((0.0, 1.0), None),
        ((0.25,), None),
        ((0.0, 0.25), "reward_too_low"),
        ((1.0, 1.0), "reward_too_high"),
    ],
)
def test_the_mean_reward_must_be_in_range(rewards: tuple[float, ...], reason: str | None) -> None:
    verdict = verdict_of(mean_reward_within(0.25, 0.75), group(*rewards))
    assert verdict == DynamicFilterOutput(reason is None, reason)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mean_reward_within(1.0, 0.0),
        lambda: mean_reward_within(float("nan"), 1.0),
        lambda: response_length_within(3, 2),
        lambda: truncated_share_within(1.5),
    ],
)
def test_bounds_that_allow_nothing_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def yes(args: RolloutConfig, samples: list[Sample]) -> bool:
    return True


def no(args: RolloutConfig, samples: list[Sample]) -> bool:
    return False


def flat(args: RolloutConfig, samples: list[Sample]) -> DynamicFilterOutput:
    return DynamicFilterOutput(keep=False, reason="flat")


def nothing(args: RolloutConfig, samples: list[Sample]) -> Any:
    return None


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (all_of(yes, yes), None),
        (all_of(yes, flat, no), "flat"),
        (all_of(no), "no"),
        (any_of(flat, yes), None),
        (any_of(no, flat, flat), "no+flat"),
        (none_of(no, flat), None),
        (none_of(no, yes), "not_yes"),
        (all_of(yes, any_of(no, none_of(yes))), "no+not_yes"),
    ],
)
def test_filters_are_put_together_and_say_which_part_rejected(
    function: DynamicFilter, reason: str | None
) -> None:
    assert verdict_of(function, group(1.0)) == DynamicFilterOutput(reason is None, reason)


@pytest.mark.parametrize("compose", [all_of, any_of, none_of])
def test_a_part_that_returns_nothing_is_named(compose: Any) -> None:
    with pytest.raises(PluginError, match="'nothing' must return"):
        verdict_of(compose(nothing), [])
