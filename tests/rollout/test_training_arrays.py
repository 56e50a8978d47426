import math
from typing import Any

import numpy as np
import pytest
import torch

from espalier.rollout import Sample, Status, as_tensors, packed_arrays, padded_arrays
from espalier.sglang import WeightSpan


def span(version: str, start: int, end: int) -> WeightSpan:
    return WeightSpan(version=version, start=start, end=end)


class Settings:
    reward_key: str | None = None


class Keyed:
    reward_key: str | None = "score"


def finished(index: int, prompt: int, response: int, **changes: Any) -> Sample:
    """Token ids count up from 100 times the index; log-probabilities are eighths, exact in float32."""
    size = prompt + response
    values: dict[str, Any] = {
        "index": index,
        "tokens": list(range(100 * index, 100 * index + size)),
        "response_length": response,
        "loss_mask": [1] * response,
        "rollout_log_probs": [-0.125 * (index + 1)] * response,
        "reward": float(index),
        "status": Status.COMPLETED,
    }
    return Sample(**{**values, **changes})


def groups() -> list[list[Sample | list[Sample]]]:
    observed = finished(2, 1, 3, loss_mask=[1, 0, 1], rollout_log_probs=[-0.25, 0.0, -0.5])
    return [[finished(1, 2, 1), [observed, finished(3, 1, 1)]], [finished(4, 3, 2)]]


def test_padded_rows_hold_each_sample_and_nothing_else() -> None:
    arrays = padded_arrays(groups(), Settings(), pad_token_id=9)
    assert arrays.tokens.tolist() == [
        [100, 101, 102, 9, 9],
        [200, 201, 202, 203, 9],
        [300, 301, 9, 9, 9],
        [400, 401, 402, 403, 404],
    ]
    assert arrays.loss_mask.tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert arrays.log_probs is not None
    assert arrays.log_probs.tolist() == [
        [0, 0, -0.25, 0, 0],
        [0, -0.25, 0, -0.5, 0],
        [0, -0.5, 0, 0, 0],
        [0, 0, 0, -0.625, -0.625],
    ]
    assert arrays.lengths.tolist() == [3, 4, 2, 5]
    assert arrays.response_lengths.tolist() == [1, 3, 1, 2]
    assert arrays.group_ids.tolist() == [0, 0, 0, 1]
    assert arrays.rewards.tolist() == [1, 2, 3, 4]


def test_packed_arrays_are_the_padded_ones_without_padding() -> None:
    padded, packed = padded_arrays(groups(), Settings()), packed_arrays(groups(), Settings())
    assert packed.offsets.tolist() == [0, 3, 7, 9, 14]
    assert padded.log_probs is not None
    assert packed.log_probs is not None
    for sample, (start, end) in enumerate(zip(packed.offsets[:-1], packed.offsets[1:], strict=True)):
        size = end - start
        assert packed.tokens[start:end].tolist() == padded.tokens[sample, :size].tolist()
        assert packed.loss_mask[start:end].tolist() == padded.loss_mask[sample, :size].tolist()
        assert packed.log_probs[start:end].tolist() == padded.log_probs[sample, :size].tolist()
    assert packed.rewards.tolist() == padded.rewards.tolist()


def test_types_are_those_that_are_documented() -> None:
    for arrays in (padded_arrays(groups(), Settings()), packed_arrays(groups(), Settings())):
        assert arrays.log_probs is not None
        assert (arrays.tokens.dtype, arrays.loss_mask.dtype) == (np.int64, np.uint8)
        assert (arrays.log_probs.dtype, arrays.rewards.dtype) == (np.float32, np.float32)
        assert arrays.lengths.dtype == arrays.response_lengths.dtype == arrays.group_ids.dtype == np.int64
    assert packed_arrays(groups(), Settings()).offsets.dtype == np.int32


def test_group_ids_are_ready_to_average_over() -> None:
    arrays = padded_arrays(groups(), Settings())
    means = np.bincount(arrays.group_ids, arrays.rewards) / np.bincount(arrays.group_ids)
    assert (arrays.rewards - means[arrays.group_ids]).tolist() == [-1, 0, 1, 0]


def test_tensors_share_the_arrays_memory() -> None:
    arrays = padded_arrays(groups(), Settings())
    tensors = as_tensors(arrays)
    assert (tensors.tokens.dtype, tensors.loss_mask.dtype) == (torch.int64, torch.uint8)
    arrays.tokens[0, 0] = 77
    assert tensors.tokens[0, 0].item() == 77
    packed = as_tensors(packed_arrays(groups(), Settings(), with_log_probs=False))
    assert packed.log_probs is None
    assert packed.offsets.tolist() == [0, 3, 7, 9, 14]


def test_a_sample_without_mask_is_trained_on_whole_and_a_removed_one_not_at_all() -> None:
    whole = finished(1, 1, 2, loss_mask=None)
    removed = finished(2, 1, 2, remove_sample=True, rollout_log_probs=[math.nan, -1.0])
    arrays = padded_arrays([[whole, removed]], Settings())
    assert arrays.loss_mask.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert arrays.log_probs is not None
    assert arrays.log_probs[1].tolist() == [0, 0, 0]


def test_a_response_without_tokens_has_no_mask() -> None:
    arrays = packed_arrays([[finished(1, 2, 0), finished(2, 1, 1)]], Settings())
    assert arrays.loss_mask.tolist() == [0, 0, 0, 1]


def test_no_groups_make_no_rows() -> None:
    assert padded_arrays([], Settings()).tokens.shape == (0, 0)
    assert packed_arrays([], Settings()).offsets.tolist() == [0]


def test_rewards_that_are_dicts_are_read_by_key() -> None:
    arrays = packed_arrays([[finished(1, 1, 1, reward={"score": -1.0})]], Keyed())
    assert arrays.rewards.tolist() == [-1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_log_probs": None}, "has no log-probabilities"),
        ({"rollout_log_probs": [-1.0]}, "rollout_log_probs has 1 entries for 2 tokens"),
        ({"rollout_log_probs": [-1.0, None]}, "no finite number"),
        ({"rollout_log_probs": [-1.0, -math.inf]}, "no finite number"),
        ({"loss_mask": [1]}, "loss_mask has 1 entries for 2 tokens"),
        ({"loss_mask": [1, 2]}, "something else than 0 and 1"),
        ({"tokens": [], "response_length": 0, "loss_mask": [], "rollout_log_probs": []}, "has no tokens"),
        ({"tokens": [1, 2.5, 3]}, "not all ids"),
        ({"tokens": [1, -2, 3]}, "not all ids"),
        ({"tokens": [1, 2**63, 3]}, "not all ids"),
        ({"tokens": [1, 2**70, 3]}, "not all ids"),
        ({"reward": None}, "has no reward"),
        ({"reward": math.nan}, "its reward is nan"),
        ({"reward": {"score": 1.0}}, "choose one by reward_key"),
        ({"status": Status.ABORTED}, "is aborted: only completed and truncated"),
    ],
)
@pytest.mark.parametrize("make", [padded_arrays, packed_arrays])
def test_what_a_sample_lacks_is_told_and_never_made_up(
    make: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"sample 5 of group 1: .*{message}"):
        make([[finished(1, 1, 1)], [finished(5, 1, 2, **changes)]], Settings())


def test_observations_need_no_log_probabilities_where_nothing_is_trained_on() -> None:
    sample = finished(1, 1, 2, loss_mask=[0, 0], rollout_log_probs=None)
    arrays = packed_arrays([[sample]], Settings())
    assert arrays.loss_mask.tolist() == [0, 0, 0]


def test_each_token_tells_which_weights_sampled_it() -> None:
    two = finished(1, 2, 4, loss_mask=[1, 1, 0, 1], weight_spans=[span("8", 0, 2), span("9", 3, 4)])
    groups = [[two, finished(2, 1, 2, weight_spans=[span("9", 0, 2)])], [finished(3, 1, 1)]]
    padded, packed = padded_arrays(groups, Settings()), packed_arrays(groups, Settings())
    assert padded.version_names == packed.version_names == ("8", "9")
    assert padded.weight_versions.dtype == packed.weight_versions.dtype == np.int32
    assert padded.weight_versions.tolist() == [
        [-1, -1, 0, 0, -1, 1],
        [-1, 1, 1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1],
    ]
    assert packed.weight_versions.tolist() == [-1, -1, 0, 0, -1, 1, -1, 1, 1, -1, -1]
    assert as_tensors(padded).version_names == ("8", "9")
    assert as_tensors(padded).weight_versions.dtype == torch.int32


def test_a_teachers_log_probabilities_are_there_when_asked_for() -> None:
    groups = [
        [finished(1, 1, 3, loss_mask=[1, 0, 1], teacher_log_probs=[-0.5, -9.0, -0.25])],
        [finished(2, 1, 1, teacher_log_probs=[-2.0])],
    ]
    padded = padded_arrays(groups, Settings(), with_teacher=True)
    packed = packed_arrays(groups, Settings(), with_teacher=True)
    assert padded.teacher_log_probs is not None
    assert packed.teacher_log_probs is not None
    assert padded.teacher_log_probs.dtype == np.float32
    assert padded.teacher_log_probs.tolist() == [[0, -0.5, 0, -0.25], [0, -2, 0, 0]]
    assert packed.teacher_log_probs.tolist() == [0, -0.5, 0, -0.25, 0, -2]
    assert padded_arrays(groups, Settings()).teacher_log_probs is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "has no teacher_log_probs"),
        ([-1.0], "teacher_log_probs has 1 entries for 2 tokens"),
        ([-1.0, math.inf], "has one among its teacher_log_probs that is no finite number"),
    ],
)
def test_a_sample_that_lacks_its_teachers_log_probabilities_raises(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"sample 1 of group 0: {message}"):
        padded_arrays([[finished(1, 1, 2, teacher_log_probs=values)]], Settings(), with_teacher=True)
