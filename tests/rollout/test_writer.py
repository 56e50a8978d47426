import json
import resource
from pathlib import Path

import pytest

from espalier.errors import ConfigError, EspalierError
from espalier.rollout import Sample
from espalier.rollout.problems import Unsavable
from espalier.rollout.records import encode_group
from espalier.rollout.timeline import Timeline
from espalier.rollout.writer import RunWriter


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_takes_the_place_of_an_earlier_one_with_its_first_step(tmp_path: Path) -> None:
    for name in ("samples.jsonl", "metrics.jsonl"):
        (tmp_path / name).write_text("earlier\n")
    with RunWriter(tmp_path, overwrite=True) as writer:
        assert (tmp_path / "samples.jsonl").read_text() == "earlier\n"
        writer.write(0, b"one\n", {"a": 1.0})
        assert (tmp_path / "samples.jsonl").read_text() == "one\n"
        writer.write(1, b"two\n", {"a": None}, Timeline(requests=[]))
    assert (tmp_path / "samples.jsonl").read_text() == "one\ntwo\n"
    assert rollout_ids(tmp_path / "metrics.jsonl") == [0, 1]
    assert rollout_ids(tmp_path / "requests.jsonl") == [1]
    assert names(tmp_path) == ["metrics.jsonl", "requests.jsonl", "samples.jsonl"]


def test_a_run_without_any_step_leaves_nothing(tmp_path: Path) -> None:
    with RunWriter(tmp_path, overwrite=False) as writer:
        assert not writer.is_published
    assert names(tmp_path) == []


def test_when_one_file_cannot_be_written_neither_is_touched(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("earlier\n")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is a folder"):
        RunWriter(tmp_path, overwrite=True)
    assert (tmp_path / "samples.jsonl").read_text() == "earlier\n"
    assert names(tmp_path) == ["metrics.jsonl", "samples.jsonl"]


def test_a_step_that_does_not_fit_on_the_disk_is_taken_back_whole(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunWriter(tmp_path, overwrite=False) as writer:
        writer.write(0, b"one\n", {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(EspalierError, match="cannot be written: File too large"):
                writer.write(1, b"x" * 150_000, {})
            with pytest.raises(EspalierError, match="cannot be written: File too large"):
                writer.write(1, b"x", {"m" * 150_000: 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.write(2, b"three\n", {})
    assert (tmp_path / "samples.jsonl").read_text() == "one\nthree\n"
    assert rollout_ids(tmp_path / "metrics.jsonl") == [0, 2]


def rollout_ids(path: Path) -> list[int]:
    return [json.loads(line)["rollout_id"] for line in path.read_text().splitlines()]


class Scalar:
    """A number as array libraries have them."""

    def item(self) -> float:
        return 0.5


class Tensor(Scalar):
    """Several of them."""

    def tolist(self) -> list[float]:
        return [0.5, 1.5]


def test_scalars_and_arrays_are_saved_as_numbers() -> None:
    metadata = {"scalar": Scalar(), "vector": Tensor()}
    [line] = encode_group([Sample(metadata=metadata)], 0).splitlines()
    assert json.loads(line)["metadata"] == {"scalar": 0.5, "vector": [0.5, 1.5]}


def test_what_cannot_be_encoded_is_named_by_sample_and_key() -> None:
    circle: dict[str, object] = {}
    circle["self"] = circle
    for value, what in (
        ({"deep": {"set": object()}}, r"sample 7 .*: metadata: deep: 'set' holds a object"),
        ({"half": "\ud800"}, r"metadata: 'half' holds a str"),
        ({"circle": circle}, r"metadata: circle: 'self' holds a dict: maximum recursion depth"),
    ):
        with pytest.raises(Unsavable, match=what):
            encode_group([Sample(index=7, metadata=value)], 0)


def test_a_saved_line_is_read_back_as_the_sample() -> None:
    sample = Sample(index=1, prompt="p", tokens=[1, 7], reward=1.0, status=Sample.Status.COMPLETED)
    sample.append_response_tokens(
        tokens=[8], log_probs=[-0.5], meta_info={"weight_version": "1", "finish_reason": {"type": "stop"}}
    )
    [line] = encode_group([sample], 3).splitlines()
    back = Sample.from_dict(json.loads(line))
    assert back == Sample.from_dict({**sample.to_dict(), "rollout_id": 3})
