"""Dynamic filters made of others.

    keep = all_of(check_no_truncated, any_of(check_reward_nonzero_std, mean_reward_within(0.9, 1.0)))

A part may return a bool, as any dynamic filter may. A part that is at fault is named in the error, not the
whole that it is in.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..config import RolloutConfig
from ..outputs import DynamicFilterOutput
from ..sample import Sample
from .hub import DynamicFilter, call_dynamic_filter, name_of


def all_of(first: DynamicFilter, *others: DynamicFilter) -> DynamicFilter:
    """Return a filter that keeps what every part keeps. The verdict is the first rejection there is."""

    def check_all(
        args: RolloutConfig, samples: Sequence[Sample | list[Sample]], **kwargs: Any
    ) -> DynamicFilterOutput:
        for part in (first, *others):
            verdict = _verdict(part, args, samples, kwargs)
            if not verdict.keep:
                return verdict
        return DynamicFilterOutput(keep=True)

    return check_all


def any_of(first: DynamicFilter, *others: DynamicFilter) -> DynamicFilter:
    """Return a filter that keeps what some part keeps. Else the reason is that of all, joined by `+`."""

    def check_any(
        args: RolloutConfig, samples: Sequence[Sample | list[Sample]], **kwargs: Any
    ) -> DynamicFilterOutput:
        rejections: list[DynamicFilterOutput] = []
        for part in (first, *others):
            verdict = _verdict(part, args, samples, kwargs)
            if verdict.keep:
                return verdict
            rejections.append(verdict)
        reason = "+".join(dict.fromkeys(str(rejection.reason) for rejection in rejections))
        return replace(rejections[0], reason=reason)

    return check_any


def none_of(first: DynamicFilter, *others: DynamicFilter) -> DynamicFilter:
    """Return a filter that keeps what every part rejects: of one part, its negation.

    The reason is `not_` and the name of the part that would keep the group.
    """

    def check_none(
        args: RolloutConfig, samples: Sequence[Sample | list[Sample]], **kwargs: Any
    ) -> DynamicFilterOutput:
        for part in (first, *others):
            if _verdict(part, args, samples, kwargs).keep:
                return DynamicFilterOutput(keep=False, reason=f"not_{name_of(part)}")
        return DynamicFilterOutput(keep=True)

    return check_none


def _verdict(
    part: DynamicFilter, args: RolloutConfig, samples: Sequence[Sample | list[Sample]], kwargs: dict[str, Any]
) -> DynamicFilterOutput:
    """Return the part's verdict; a rejection without a reason gets the part's name."""
    verdict = call_dynamic_filter(part, args, samples, **kwargs)
    return verdict if verdict.keep or verdict.reason else replace(verdict, reason=name_of(part))
