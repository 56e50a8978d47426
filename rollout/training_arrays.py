"""Groups of samples as arrays to train on, in rows of one length (padded) or one after the other (packed).

Invariant: where the loss mask is 1, the token is one that the engine sampled, and the log-probability is the
one that it had then. Nothing is filled in: a sample that lacks one raises. Where the mask is 0 (prompts,
observations, samples to leave out, padding) the log-probability is 0.0 and means nothing.

Shapes: N samples in the order of the groups; T tokens in the longest of them, prompt and response; S tokens
in all of them.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, overload

from ..errors import ConfigError
from .filters import flattened
from .sample import FINISHED, RewardKey, Sample

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array: TypeAlias = np.ndarray[Any, Any]

A = TypeVar("A")
"""Arrays of numpy, or tensors of torch."""

Groups: TypeAlias = Sequence[Sequence[Sample | list[Sample]]]
"""As a rollout returns them; a sample that was fanned out is a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleArrays(Generic[A]):
    """What there is one of for each sample."""

    lengths: A
    """int64 [N]: tokens of prompt and response"""

    response_lengths: A
    """int64 [N]: tokens of the response, the last ones"""

    rewards: A
    """float32 [N]"""

    group_ids: A
    """int64 [N]: position of the sample's group, from 0, without gaps: ready to average over"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedArrays(SampleArrays[A]):
    """One row for each sample, padded on the right."""

    tokens: A
    """int64 [N, T]"""

    loss_mask: A
    """uint8 [N, T]: 1 where the token is trained on"""

    log_probs: A | None
    """float32 [N, T]: nats, at the token that they are of; None where none were asked for"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedArrays(SampleArrays[A]):
    """All samples one after the other, without padding."""

    tokens: A
    """int64 [S]"""

    loss_mask: A
    """uint8 [S]: 1 where the token is trained on"""

    log_probs: A | None
    """float32 [S]: nats, at the token that they are of; None where none were asked for"""

    offsets: A
    """int32 [N + 1]: sample i has the tokens from `offsets[i]` to `offsets[i + 1]` (`cu_seqlens`)"""


def padded_arrays(
    groups: Groups, args: RewardKey, *, pad_token_id: int = 0, with_log_probs: bool = True
) -> "PaddedArrays[Array]":
    """Return the samples as padded arrays of numpy.

    `args.reward_key` tells which entry of a reward dict is the reward. `with_log_probs` is for samples
    that nothing sampled, such as those of supervised training.

    Raises: ValueError naming the sample that lacks its tokens, reward or log-probabilities, or whose lists do
    not fit; ConfigError where numpy is not installed.
    """
    np = _numpy()
    rows = _rows(np, groups, args, with_log_probs=with_log_probs)
    shape = (len(rows), max((row.tokens.size for row in rows), default=0))
    tokens = np.full(shape, pad_token_id, np.int64)
    loss_mask = np.zeros(shape, np.uint8)
    log_probs = np.zeros(shape, np.float32) if with_log_probs else None
    for position, row in enumerate(rows):
        size = row.tokens.size
        tokens[position, :size] = row.tokens
        loss_mask[position, size - row.response_length : size] = row.loss_mask
        if log_probs is not None:
            log_probs[position, size - row.response_length : size] = row.log_probs
    return PaddedArrays(tokens=tokens, loss_mask=loss_mask, log_probs=log_probs, **_sample_arrays(np, rows))


def packed_arrays(groups: Groups, args: RewardKey, *, with_log_probs: bool = True) -> "PackedArrays[Array]":
    """Return the samples as packed arrays of numpy. Arguments and errors are those of `padded_arrays`."""
    np = _numpy()
    rows = _rows(np, groups, args, with_log_probs=with_log_probs)
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([row.tokens.size for row in rows], out=offsets[1:])
    tokens = np.zeros(int(offsets[-1]), np.int64)
    loss_mask = np.zeros(tokens.size, np.uint8)
    log_probs = np.zeros(tokens.size, np.float32) if with_log_probs else None
    for row, start, end in zip(rows, offsets[:-1], offsets[1:], strict=True):
        tokens[start:end] = row.tokens
        loss_mask[end - row.response_length : end] = row.loss_mask
        if log_probs is not None:
            log_probs[end - row.response_length : end] = row.log_probs
    return PackedArrays(
        tokens=tokens, loss_mask=loss_mask, log_probs=log_probs, offsets=offsets, **_sample_arrays(np, rows)
    )


@overload
def as_tensors(arrays: "PaddedArrays[Array]") -> "PaddedArrays[torch.Tensor]": ...
@overload
def as_tensors(arrays: "PackedArrays[Array]") -> "PackedArrays[torch.Tensor]": ...
def as_tensors(arrays: Any) -> Any:
    """Return the same with torch's tensors, which share the arrays' memory.

    Raises: ConfigError where torch is not installed.
    """
    try:
        import torch  # noqa: PLC0415  only tensors need the package
    except ModuleNotFoundError:
        raise ConfigError("tensors need torch: pip install 'espalier[torch]'") from None
    tensors = {
        item.name: None if value is None else torch.from_numpy(value)
        for item in dataclasses.fields(arrays)
        for value in (getattr(arrays, item.name),)
    }
    return dataclasses.replace(arrays, **tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One sample; mask and log-probabilities are the response's."""

    tokens: "Array"
    loss_mask: "Array"
    log_probs: "Array | None"
    response_length: int
    reward: float
    group_id: int


def _rows(np: Any, groups: Groups, args: RewardKey, *, with_log_probs: bool) -> list[_Row]:
    rows = []
    for group_id, group in enumerate(groups):
        for sample in flattened(group):
            try:
                rows.append(_row(np, sample, args, group_id, with_log_probs=with_log_probs))
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"sample {sample.index} of group {group_id}: {error}") from error
    return rows


def _row(np: Any, sample: Sample, args: RewardKey, group_id: int, *, with_log_probs: bool) -> _Row:
    sample.validate()
    if sample.status not in FINISHED and not sample.remove_sample:
        raise ValueError(f"is {sample.status}: only completed and truncated samples can be trained on")
    count = sample.response_length
    tokens = _whole_numbers(np, sample.tokens)
    mask = np.ones(count, np.uint8) if sample.loss_mask is None else np.asarray(sample.loss_mask, np.uint8)
    if sample.remove_sample:
        mask = np.zeros(count, np.uint8)
    reward = sample.get_reward_value(args)
    if not math.isfinite(reward):
        raise ValueError(f"its reward is {reward}")
    log_probs = _log_probs(np, sample, mask) if with_log_probs else None
    return _Row(
        tokens=tokens,
        loss_mask=mask,
        log_probs=log_probs,
        response_length=count,
        reward=reward,
        group_id=group_id,
    )


def _whole_numbers(np: Any, tokens: Sequence[int]) -> "Array":
    if not len(tokens):
        raise ValueError("has no tokens")
    found = np.asarray(tokens)
    ids: Array = found.astype(np.int64) if found.dtype.kind in "iu" else np.array([-1])
    if ids.ndim != 1 or ids.min() < 0:
        raise ValueError("its tokens are not all ids: whole numbers from 0")
    return ids


def _log_probs(np: Any, sample: Sample, mask: "Array") -> "Array":
    """Return the log-probabilities where `mask` is 1, and 0.0 elsewhere."""
    if sample.rollout_log_probs is None:
        if mask.any():
            raise ValueError("has no log-probabilities")
        return mask.astype(np.float32)
    found: Array = np.array(sample.rollout_log_probs, np.float32)
    is_trained = mask.astype(bool)
    if not np.isfinite(found[is_trained]).all():
        raise ValueError("has a log-probability that is no finite number")
    found[~is_trained] = 0.0
    return found


def _sample_arrays(np: Any, rows: Sequence[_Row]) -> "dict[str, Array]":
    return {
        "lengths": np.array([row.tokens.size for row in rows], np.int64),
        "response_lengths": np.array([row.response_length for row in rows], np.int64),
        "rewards": np.array([row.reward for row in rows], np.float32),
        "group_ids": np.array([row.group_id for row in rows], np.int64),
    }


def _numpy() -> Any:
    try:
        import numpy as np  # noqa: PLC0415  only training arrays need the package
    except ModuleNotFoundError:
        raise ConfigError("training arrays need numpy: pip install 'espalier[numpy]'") from None
    return np
