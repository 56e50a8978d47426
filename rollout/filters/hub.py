"""The registries of filters, and the call that asks a dynamic one."""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from ...errors import PluginError
from ...registry import Registry
from ..config import RolloutConfig
from ..outputs import DynamicFilterOutput
from ..sample import Sample

DynamicFilter: TypeAlias = Callable[..., DynamicFilterOutput | bool]
"""`f(args, samples, **kwargs)`."""

OverSamplingFilter: TypeAlias = Callable[[RolloutConfig, list[list[Sample]]], list[list[Sample]]]
"""`f(args, groups)`: the groups, those to be kept first."""


def _dynamic_filter(args: RolloutConfig, samples: list[Sample]) -> object: ...


def _over_sampling_filter(args: RolloutConfig, groups: list[list[Sample]]) -> object: ...


dynamic_filters: Registry[DynamicFilter] = Registry("dynamic filter", expects=_dynamic_filter)
"""Filters that drop and replace groups while a rollout runs."""

over_sampling_filters: Registry[OverSamplingFilter] = Registry(
    "over-sampling filter", expects=_over_sampling_filter
)
"""Filters that choose a batch among more groups than it needs."""


def call_dynamic_filter(
    function: DynamicFilter | None,
    args: RolloutConfig,
    samples: Sequence[Sample | list[Sample]],
    **kwargs: Any,
) -> DynamicFilterOutput:
    """Return the filter's verdict; without a filter everything is kept, and a bool is a verdict too.

    A scalar of torch or numpy counts as the bool that it holds: filters written for slime return such.

    Raises: PluginError where it returns anything else; what the filter raises.
    """
    if function is None:
        return DynamicFilterOutput(keep=True)
    verdict: object = function(args, samples, **kwargs)
    output = verdict if isinstance(verdict, DynamicFilterOutput) else None
    keep = _as_bool(output.keep if output is not None else verdict)
    if keep is None:
        raise PluginError(
            f"the dynamic filter {name_of(function)!r} must return a DynamicFilterOutput or a bool, "
            f"not {_told(verdict)}"
        )
    if output is None:
        return DynamicFilterOutput(keep=keep)
    return output if output.keep is keep else replace(output, keep=keep)


def name_of(function: object) -> str:
    """Return what a person would call `function`."""
    return str(getattr(function, "__name__", function))


def _as_bool(value: object) -> bool | None:
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        value = item()
    return value if isinstance(value, bool) else None


def _told(verdict: object) -> str:
    if inspect.iscoroutine(verdict):
        verdict.close()
        return "a coroutine: write it without async"
    if isinstance(verdict, DynamicFilterOutput):
        return f"one whose keep is {verdict.keep!r:.100}"
    return type(verdict).__name__


class MetricGatherer:
    """Counts what a dynamic filter dropped, by reason."""

    def __init__(self) -> None:
        self._dropped: Counter[str] = Counter()

    def on_dynamic_filter_drop(self, reason: str | None) -> None:
        """Count one more group; without a reason it counts as `unspecified`."""
        self._dropped[reason or "unspecified"] += 1

    def collect(self) -> dict[str, float]:
        """Return `rollout/dynamic_filter/drop_{reason}` -> groups."""
        return {f"rollout/dynamic_filter/drop_{reason}": count for reason, count in self._dropped.items()}


def flattened(samples: Sequence[Sample | list[Sample]]) -> list[Sample]:
    """Return the samples of a group in one list, those that a sample was fanned out to included."""
    return [sample for item in samples for sample in (item if isinstance(item, list) else [item])]
