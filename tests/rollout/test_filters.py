import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import PluginError
from espalier.rollout import DynamicFilterOutput, RolloutConfig, Sample
from espalier.rollout.filters import (
    MIN_REWARD_STD,
    MetricGatherer,
    call_dynamic_filter,
    check_reward_nonzero_std,
    dynamic_filters,
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


@pytest.mark.parametrize(
    ("returned", "keep"), [(True, True), (False, False), (DynamicFilterOutput(True), True)]
)
def test_a_filter_may_return_a_bool(returned: Any, keep: bool) -> None:
    assert call_dynamic_filter(lambda *_: returned, ARGS, []).keep is keep


def test_a_filter_that_returns_nothing_is_at_fault() -> None:
    def forgetful(args: RolloutConfig, samples: list[Sample]) -> Any:
        return None

    with pytest.raises(PluginError, match="'forgetful' must return a DynamicFilterOutput"):
        call_dynamic_filter(forgetful, ARGS, [])


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
    with pytest.raises(PluginError, match="known are check_reward_nonzero_std"):
        dynamic_filters.resolve("check_reward")
