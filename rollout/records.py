"""A sample as a line of `samples.jsonl`."""

from collections.abc import Sequence
from typing import Any, Final, Self

import msgspec
from msgspec import UNSET, UnsetType

from ..errors import RolloutError
from ..sglang import WeightSpan
from .images import IMAGES, label
from .problems import Unsavable
from .rewards import RewardValue
from .sample import Sample

MAX_DEPTH: Final = 2
"""Objects within a field that are searched for the value at fault; one may hold itself."""


class SampleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `samples.jsonl`: what training needs, and nothing that differs from run to run.

    Arrays are left out: `rollout_routed_experts`, and the values of `multimodal_train_inputs`, can have many
    MB a sample and are only in memory.

    `tokens` are the prompt's and the response's; `loss_mask` and `rollout_log_probs` (nats) have one entry
    for each of the last `response_length` of them, and `weight_spans` count from the response's start.
    """

    rollout_id: int
    group_index: int | None
    index: int | None
    prompt: str | list[dict[str, object]]
    response: str
    label: object
    reward: RewardValue | None
    status: str
    tokens: list[int]
    response_length: int
    loss_mask: list[int] | None
    rollout_log_probs: list[float] | None
    weight_versions: list[str]
    weight_spans: list[WeightSpan]
    metadata: dict[str, object]
    teacher_log_probs: list[float] | UnsetType = UNSET
    """nats, one for each response token"""
    multimodal_inputs: dict[str, list[str]] | UnsetType = UNSET
    """`images`, in order: path or URL of each; of one that the row itself held, a digest"""
    multimodal_train_shapes: dict[str, str] | UnsetType = UNSET
    """type and shape of each of its `multimodal_train_inputs`, as `float32[256, 1176]`: the values stay in
    memory, for the trainer"""

    @classmethod
    def of(cls, sample: Sample, rollout_id: int) -> Self:
        """Return the record of `sample`."""
        return cls(
            rollout_id=rollout_id,
            group_index=sample.group_index,
            index=sample.index,
            prompt=sample.prompt,
            response=sample.response,
            label=sample.label,
            reward=sample.reward,
            status=sample.status.value,
            tokens=sample.tokens,
            response_length=sample.response_length,
            loss_mask=sample.loss_mask,
            rollout_log_probs=sample.rollout_log_probs,
            weight_versions=sample.weight_versions,
            weight_spans=sample.weight_spans,
            metadata=sample.metadata,
            teacher_log_probs=UNSET if sample.teacher_log_probs is None else sample.teacher_log_probs,
            multimodal_inputs=_labels(sample),
            multimodal_train_shapes=_outlines(sample),
        )


def _labels(sample: Sample) -> dict[str, list[str]] | UnsetType:
    images = (sample.multimodal_inputs or {}).get(IMAGES)
    return {IMAGES: [label(image) for image in images]} if images else UNSET


def _outlines(sample: Sample) -> dict[str, str] | UnsetType:
    inputs = sample.multimodal_train_inputs
    return {name: outline(value) for name, value in inputs.items()} if inputs else UNSET


def outline(value: object) -> str:
    """Return type and shape of an array of numpy or torch, and the type's name of anything else."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return type(value).__name__
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def encode_group(samples: Sequence[Sample], rollout_id: int) -> bytes:
    """Return the lines of a group. Arrays and scalars of numpy and torch become lists and numbers.

    Raises: Unsavable naming the sample and the key whose value JSON cannot hold.
    """
    return b"".join(_encode_sample(sample, rollout_id) + b"\n" for sample in samples)


def _encode_sample(sample: Sample, rollout_id: int) -> bytes:
    try:
        record = SampleRecord.of(sample, rollout_id)
    except (RolloutError, TypeError, AttributeError, ValueError) as error:
        raise Unsavable(f"sample {sample.index} cannot be saved: {error}") from error
    try:
        return _encoder.encode(record)
    except Exception as error:  # what encoding a plug-in's value raises is the plug-in's to choose
        values = {name: getattr(record, name) for name in record.__struct_fields__}
        raise Unsavable(
            f"sample {sample.index} cannot be saved: {_culprit(values, MAX_DEPTH) or error}"
        ) from error


def _culprit(values: dict[str, Any], depth: int) -> str | None:
    """Name the first value that cannot be encoded, by the keys that lead to it."""
    for key, value in values.items():
        try:
            _encoder.encode({key: value})
        except Exception as error:  # noqa: BLE001  as above
            inner = _culprit(value, depth - 1) if isinstance(value, dict) and depth > 0 else None
            return f"{key}: {inner}" if inner else f"{key!r} holds a {type(value).__name__}: {error}"
    return None


def plain_value(value: object) -> object:
    """Return an array or scalar of numpy or torch as lists and numbers, for encoders.

    Raises: NotImplementedError for anything else.
    """
    for method in ("tolist", "item"):
        convert = getattr(value, method, None)
        if callable(convert):
            return convert()
    raise NotImplementedError(f"no {type(value).__name__} can be saved")


_encoder = msgspec.json.Encoder(enc_hook=plain_value)
