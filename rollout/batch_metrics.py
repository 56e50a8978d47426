"""What a batch tells about its samples beyond length and reward. Pure; names are slime's where it has one."""

import statistics
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Final, Protocol

from .metrics import Metrics
from .sample import RewardKey, Sample
from .staleness import WeightHistory

REPETITION_CHARS: Final = 10_000
"""Characters at the end of a response that are looked at; shorter responses are not called repetitive."""

REPETITION_RATIO: Final = 10.0
"""Text that zlib makes this many times smaller goes round in circles; prose gets about 3 times smaller."""

ZERO_STD_PREFIX: Final = "rollout/zero_std/count_"
"""Groups in the batch whose samples all have the same reward, by that reward to one decimal."""

ERROR_CATEGORY_PREFIX: Final = "rollout/error_cat/"
"""Share of samples by the entry of their reward that `log_reward_category` names."""

STALENESS_PREFIX: Final = "rollout/staleness/tokens_"
"""Share of sampled tokens by how many weight versions they are behind."""

OLDEST_AGE: Final = 7
"""Ages from this one on are counted together, so that a long run has no more than eight such metrics."""

MAX_CATEGORIES: Final = 32
"""Categories that become metrics of their own, the most frequent ones; a grader may make up any number."""


class BatchSettings(RewardKey, Protocol):
    """The settings that these metrics depend on."""

    @property
    def log_reward_category(self) -> str | None:
        """Key into the reward dict, whose values are counted."""
        ...

    @property
    def rollout_num_gpus(self) -> int | None:
        """GPUs that the workers have together, or None where nobody said."""
        ...


def batch_metrics(args: BatchSettings, groups: Sequence[Sequence[Sample]]) -> Metrics:
    """Return what the samples of a batch have in common: caches, speculation, repetition, equal rewards.

    A ratio of which the workers told nothing is left out.
    """
    samples = [sample for group in groups for sample in group]
    return {
        **_equal_rewards(args, groups),
        **_categories(args, samples),
        **_worker_counts(samples),
        "rollout/repetition_frac": (
            sum(is_repetitive(sample.response) for sample in samples) / len(samples) if samples else None
        ),
    }


def speed_metrics(args: BatchSettings, groups: Sequence[Sequence[Sample]], rollout_time_s: float) -> Metrics:
    """Return the batch's tokens over the time that it took, in tokens a second.

    "Effective" tokens are those that are trained on. Per GPU only where `rollout_num_gpus` is known.
    """
    samples = [sample for group in groups for sample in group]
    if not samples or rollout_time_s <= 0:
        return {}
    lengths = [sample.response_length for sample in samples]
    effective = [sample.effective_response_length for sample in samples]
    elsewhere_s = [sample.non_generation_time for sample in samples]
    metrics: Metrics = {
        "perf/longest_sample_tokens_per_sec": max(lengths) / rollout_time_s,
        "perf/longest_effective_sample_tokens_per_sec": max(effective) / rollout_time_s,
    }
    if args.rollout_num_gpus is not None:
        gpu_seconds = rollout_time_s * args.rollout_num_gpus
        metrics["perf/tokens_per_gpu_per_sec"] = sum(lengths) / gpu_seconds
        metrics["perf/effective_tokens_per_gpu_per_sec"] = sum(effective) / gpu_seconds
    if any(elsewhere_s):
        metrics["perf/non_generation_time/mean"] = statistics.fmean(elsewhere_s)
        metrics["perf/non_generation_time/median"] = statistics.median(elsewhere_s)
        metrics["perf/non_generation_time/max"] = max(elsewhere_s)
        metrics["perf/non_generation_time/min"] = min(elsewhere_s)
    return metrics


def staleness_metrics(history: WeightHistory, samples: Sequence[Sample]) -> Metrics:
    """Return the share of the batch's sampled tokens by age, in weight versions behind the newest heard of.

    `history` hears of the batch's versions first. Tokens of unknown weights are left out; without any other
    there is nothing to tell.
    """
    for sample in samples:
        for version in sample.weight_versions:
            history.note(version)
    tokens: Counter[int] = Counter()
    for sample in samples:
        for span in sample.weight_spans:
            tokens[min(history.age(span.version), OLDEST_AGE)] += span.end - span.start
    total = tokens.total()
    return {f"{STALENESS_PREFIX}{age_name(age)}": count / total for age, count in sorted(tokens.items())}


def age_name(age: int) -> str:
    """Return how an age is called in a metric's name."""
    return f"{age}_behind" if age < OLDEST_AGE else f"{OLDEST_AGE}_or_more_behind"


def is_repetitive(text: str) -> bool:
    """Tell whether a long text ends in the same words again and again."""
    if len(text) <= REPETITION_CHARS:
        return False
    end = text[-REPETITION_CHARS:].encode("utf-8", "replace")
    return len(end) / len(zlib.compress(end)) > REPETITION_RATIO


def _equal_rewards(args: RewardKey, groups: Sequence[Sequence[Sample]]) -> Metrics:
    counts: Counter[float] = Counter()
    for group in groups:
        rewards = {sample.get_reward_value(args) for sample in group if sample.reward is not None}
        if len(group) > 1 and len(rewards) == 1:
            counts[round(rewards.pop(), 1) + 0.0] += 1  # -0.0 is 0.0
    return {f"{ZERO_STD_PREFIX}{reward}": float(count) for reward, count in sorted(counts.items())}


def _categories(args: BatchSettings, samples: Sequence[Sample]) -> Metrics:
    key = args.log_reward_category
    if key is None:
        return {}
    found = Counter(str(sample.reward.get(key)) for sample in samples if isinstance(sample.reward, dict))
    return {
        f"{ERROR_CATEGORY_PREFIX}{category}": count / len(samples)
        for category, count in sorted(found.most_common(MAX_CATEGORIES))
    }


def _worker_counts(samples: Sequence[Sample]) -> Metrics:
    metrics: Metrics = {}
    prompt_tokens = sum(sample.prefix_cache_info.total_prompt_tokens for sample in samples)
    if prompt_tokens:
        cached = sum(sample.prefix_cache_info.cached_tokens for sample in samples)
        metrics["rollout/prefix_cache_hit_rate"] = cached / prompt_tokens
        metrics["rollout/avg_cached_tokens_per_sample"] = cached / len(samples)
    drafts = sum(sample.spec_info.spec_draft_token_num for sample in samples)
    if drafts:
        accepted = sum(sample.spec_info.spec_accept_token_num for sample in samples)
        metrics["rollout/spec_accept_rate"] = accepted / drafts
    verifications = sum(sample.spec_info.spec_verify_ct for sample in samples)
    if verifications:
        completed = sum(sample.spec_info.completion_token_num for sample in samples)
        metrics["rollout/spec_accept_length"] = completed / verifications
    kept = [sample for sample in samples if sample.rollout_top_p_token_offsets is not None]
    tokens = sum(sample.response_length for sample in kept)
    if tokens:
        words = sum(int(sample.rollout_top_p_token_offsets[-1]) for sample in kept)
        metrics["rollout/top_p_kept_vocab_per_token"] = words / tokens
    return metrics
