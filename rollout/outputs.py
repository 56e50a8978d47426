"""What rollout functions and filters return. Names are slime's."""

from dataclasses import dataclass
from typing import Any

from .sample import Sample


@dataclass(slots=True)
class RolloutFnTrainOutput:
    """Groups to train on, sorted by index, and the metrics of the rollout that made them."""

    samples: list[list[Sample]]
    metrics: dict[str, float | None] | None = None


@dataclass(slots=True)
class RolloutFnEvalOutput:
    """For each evaluation set by name: `rewards`, `truncated` and `samples`, one entry a sample each."""

    data: dict[str, dict[str, Any]]
    metrics: dict[str, float | None] | None = None


@dataclass(frozen=True, slots=True)
class DynamicFilterOutput:
    """A dynamic filter's verdict on a group; `reason` becomes a metric of its own when it is dropped."""

    keep: bool
    reason: str | None = None
    keep_when_insufficient: bool = False
    """keep a rejected group all the same where dropping it would mean to submit more"""
