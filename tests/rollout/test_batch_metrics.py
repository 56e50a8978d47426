from dataclasses import dataclass

import pytest

from espalier.rollout import Sample
from espalier.rollout.batch_metrics import (
    MAX_CATEGORIES,
    REPETITION_CHARS,
    batch_metrics,
    is_repetitive,
    speed_metrics,
    staleness_metrics,
)
from espalier.rollout.sample import PrefixCacheInfo, SpecInfo
from espalier.rollout.staleness import WeightHistory
from espalier.sglang import WeightSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    reward_key: str | None = None
    log_reward_category: str | None = None
    rollout_num_gpus: int | None = None


def test_groups_with_equal_rewards_are_counted_by_reward() -> None:
    groups = [
        [Sample(reward=1), Sample(reward=1.0)],
        [Sample(reward=1.04), Sample(reward=1.04)],
        [Sample(reward=-0.0), Sample(reward=0.0)],
        [Sample(reward=0.0), Sample(reward=1.0)],
        [Sample(reward=1.0)],
    ]
    found = {name: count for name, count in batch_metrics(Settings(), groups).items() if "zero_std" in name}
    assert found == {"rollout/zero_std/count_0.0": 1.0, "rollout/zero_std/count_1.0": 2.0}


def test_categories_are_shares_and_bounded() -> None:
    args = Settings(reward_key="score", log_reward_category="why")
    samples = [Sample(reward={"score": 0.0, "why": "format"})] * 3 + [Sample(reward={"score": 0.0})]
    metrics = batch_metrics(args, [samples])
    assert metrics["rollout/error_cat/format"] == 0.75
    assert metrics["rollout/error_cat/None"] == 0.25
    many = [Sample(reward={"score": 0.0, "why": number}) for number in range(1000)]
    assert sum("error_cat" in name for name in batch_metrics(args, [many])) == MAX_CATEGORIES


def test_what_the_workers_count_is_summed_over_samples() -> None:
    samples = [
        Sample(
            response_length=4,
            prefix_cache_info=PrefixCacheInfo(cached_tokens=cached, total_prompt_tokens=10),
            spec_info=SpecInfo(
                spec_accept_token_num=3, spec_draft_token_num=4, spec_verify_ct=2, completion_token_num=5
            ),
            rollout_top_p_token_offsets=[0, 10, 20],
        )
        for cached in (2, 8)
    ]
    metrics = batch_metrics(Settings(), [samples])
    assert metrics["rollout/prefix_cache_hit_rate"] == 0.5
    assert metrics["rollout/avg_cached_tokens_per_sample"] == 5
    assert (metrics["rollout/spec_accept_rate"], metrics["rollout/spec_accept_length"]) == (0.75, 2.5)
    assert metrics["rollout/top_p_kept_vocab_per_token"] == 5


def test_what_nobody_measured_is_left_out() -> None:
    assert batch_metrics(Settings(), [[Sample()]]) == {"rollout/repetition_frac": 0.0}
    assert batch_metrics(Settings(), []) == {"rollout/repetition_frac": None}
    assert speed_metrics(Settings(), [], 3.0) == speed_metrics(Settings(), [[Sample()]], 0.0) == {}


def test_a_long_response_that_goes_round_in_circles_is_repetitive() -> None:
    assert is_repetitive("and so on " * REPETITION_CHARS)
    assert not is_repetitive("and so on " * (REPETITION_CHARS // 10))
    assert not is_repetitive(" ".join(str(number * number) for number in range(REPETITION_CHARS)))


def test_speed_counts_all_tokens_and_those_that_are_trained_on() -> None:
    samples = [
        Sample(response_length=10, loss_mask=[1] * 4 + [0] * 6, non_generation_time=2.0),
        Sample(response_length=6),
    ]
    metrics = speed_metrics(Settings(rollout_num_gpus=4), [samples], 2.0)
    assert metrics["perf/longest_sample_tokens_per_sec"] == 5
    assert metrics["perf/longest_effective_sample_tokens_per_sec"] == 3
    assert metrics["perf/tokens_per_gpu_per_sec"] == 2
    assert metrics["perf/effective_tokens_per_gpu_per_sec"] == 10 / 8
    assert (metrics["perf/non_generation_time/mean"], metrics["perf/non_generation_time/min"]) == (1, 0)
    assert "perf/tokens_per_gpu_per_sec" not in speed_metrics(Settings(), [samples], 2.0)


def versioned(*spans: tuple[str, int]) -> Sample:
    start, found = 0, []
    for version, tokens in spans:
        found.append(WeightSpan(version=version, start=start, end=start + tokens))
        start += tokens
    return Sample(weight_versions=[version for version, _ in spans], weight_spans=found)


def test_tokens_are_counted_by_how_many_versions_they_are_behind() -> None:
    history = WeightHistory()
    assert staleness_metrics(history, [versioned(("3", 5))]) == {"rollout/staleness/tokens_0_behind": 1.0}
    metrics = staleness_metrics(history, [versioned(("3", 1), ("5", 2)), versioned(("5", 1))])
    assert metrics == pytest.approx(
        {"rollout/staleness/tokens_0_behind": 0.75, "rollout/staleness/tokens_2_behind": 0.25}
    )
    metrics = staleness_metrics(history, [versioned(("3", 1)), versioned(("5", 1)), versioned(("40", 2))])
    assert metrics == {
        "rollout/staleness/tokens_0_behind": 0.5,
        "rollout/staleness/tokens_7_or_more_behind": 0.5,
    }
    assert staleness_metrics(history, [Sample()]) == {}
