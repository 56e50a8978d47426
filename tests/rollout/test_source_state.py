import io
import json
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from espalier.errors import ConfigError, DataError, EspalierError
from espalier.rollout import RolloutConfig, RolloutDataSource, RolloutDataSourceWithBuffer, Sample, Status
from espalier.rollout.command import run
from espalier.rollout.problems import Unsavable
from espalier.rollout.source_state import state_path

SAVE_UNTIL_KILLED = """
import sys
from pathlib import Path
from espalier.rollout import RolloutConfig, RolloutDataSourceWithBuffer
folder = Path(sys.argv[1])
data = RolloutDataSourceWithBuffer(RolloutConfig(prompt_data=folder / "letters.jsonl", save=folder))
for count in range(1_000_000):
    data.update_metadata({"count": count, "filler": str(count % 10) * 400_000})
    data.add_samples(data.get_samples(1))
    data.save(count % 3)
    print(count, flush=True)
"""
"""Saves over and over, some hundred kilobytes each time, and says when each is on the disk."""

SAVE_TOO_MUCH = """
import resource, signal, sys
from pathlib import Path
from espalier.rollout import RolloutConfig, RolloutDataSourceWithBuffer
folder = Path(sys.argv[1])
data = RolloutDataSourceWithBuffer(RolloutConfig(prompt_data=folder / "letters.jsonl", save=folder))
data.update_metadata({"count": 0})
data.save(0)
data.update_metadata({"count": 1, "filler": "x" * 400_000})
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
data.save(0)
"""
"""Is killed by the system after the first 100,000 bytes of its second save."""


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters.jsonl"
    path.write_text("".join(f'{{"prompt": "{letter}"}}\n' for letter in "abcde"))
    return path


def source(path: Path, **changes: Any) -> RolloutDataSourceWithBuffer:
    settings = {"n_samples_per_prompt": 2, "save": path.parent, "load": path.parent, **changes}
    return RolloutDataSourceWithBuffer(RolloutConfig(prompt_data=path, **settings))


def prompts(groups: list[list[Sample]]) -> str:
    return "".join(str(group[0].prompt) for group in groups)


def partial_group(data: RolloutDataSource) -> list[Sample]:
    group = data.get_samples(1)[0]
    group[0].tokens = [1, 2]
    group[0].append_response_tokens(
        tokens=[7],
        log_probs=[-0.1],
        text="x",
        meta_info={"finish_reason": {"type": "abort"}, "weight_version": "1"},
    )
    group[0].metadata["start_rollout_id"] = 0
    vars(group[0])["judge_notes"] = {"raw": b"\xff", "odd": float("inf")}
    return group


def test_a_new_process_goes_on_where_the_last_one_was(letters: Path) -> None:
    data = source(letters, rollout_shuffle=True)
    data.get_samples(7)
    data.add_samples([partial_group(data)])
    data.update_metadata({"note": "mine"})
    data.save(4)

    again = source(letters, rollout_shuffle=True)
    assert again.load() == 4
    assert again.buffer == data.buffer
    assert again.buffer[0][0].status is Status.ABORTED
    assert vars(again.buffer[0][0])["judge_notes"] == {"raw": b"\xff", "odd": float("inf")}
    assert again.get_metadata() == {"note": "mine"}
    assert again.get_samples(9) == data.get_samples(9)


def test_the_state_after_any_rollout_can_be_asked_for(letters: Path) -> None:
    data = source(letters)
    for rollout_id in (9, 10):
        data.get_samples(1)
        data.save(rollout_id)
    again = source(letters)
    assert again.load(9) == 9
    assert prompts(again.get_samples(1)) == "b"
    assert again.load() == 10
    assert prompts(again.get_samples(1)) == "c"


def test_with_nothing_to_go_on_from_a_source_begins_at_the_beginning(letters: Path) -> None:
    for data, rollout_id in ((source(letters), None), (source(letters), -1), (source(letters, load=None), 3)):
        assert data.load(rollout_id) is None
        assert prompts(data.get_samples(1)) == "a"


def test_saving_leaves_one_file_for_each_rollout(letters: Path) -> None:
    data = source(letters)
    for rollout_id in (0, 1, 1):
        data.save(rollout_id)
    names = sorted(path.name for path in state_path(letters.parent, 0).parent.iterdir())
    assert names == ["data_source_state_0.msgpack", "data_source_state_1.msgpack"]


def test_saving_needs_a_folder(letters: Path) -> None:
    with pytest.raises(ConfigError, match="give --save"):
        source(letters, save=None).save(0)
    with pytest.raises(EspalierError, match=r"--save .*letters\.jsonl: data_source_state_0"):
        source(letters, save=letters).save(0)


def test_arrays_are_saved_as_lists_and_what_cannot_be_is_named(letters: Path) -> None:
    data = source(letters)
    group = partial_group(data)
    data.add_samples([group])
    group[1].rollout_routed_experts = array("i", [1, 2])
    data.save(0)
    group[0].multimodal_inputs = {"image": object()}
    with pytest.raises(Unsavable, match=r"sample 0: 'multimodal_inputs': no object can be saved"):
        data.save(0)
    again = source(letters)
    again.load()
    assert again.buffer[0][1].rollout_routed_experts == [1, 2]


def test_a_source_without_buffer_does_not_lose_the_groups_of_one_with(letters: Path) -> None:
    data = source(letters)
    data.add_samples(data.get_samples(2))
    data.save(0)
    plain = RolloutDataSource(RolloutConfig(prompt_data=letters, load=letters.parent))
    with pytest.raises(DataError, match="2 groups that were cut off: use RolloutDataSourceWithBuffer"):
        plain.load()
    assert prompts(plain.get_samples(1)) == "a"


def test_groups_of_another_size_are_refused(letters: Path) -> None:
    data = source(letters)
    data.add_samples(data.get_samples(1))
    data.save(0)
    other = source(letters, n_samples_per_prompt=4)
    with pytest.raises(DataError, match="groups of 2 samples: give the same --n-samples-per-prompt, not 4"):
        other.load()
    assert (other.sample_offset, other.buffer) == (0, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rollout_shuffle": True},
            "that of another order: it was shuffled with seed None, this run with 42",
        ),
        ({"prompt_data": "others.jsonl"}, "that of another dataset: 5 prompts, where .* has 1, or others"),
    ],
)
def test_the_state_of_another_run_is_refused(letters: Path, changes: dict[str, Any], message: str) -> None:
    source(letters).save(0)
    others = letters.with_name("others.jsonl")
    others.write_text('{"prompt": "z"}')
    path = others if "prompt_data" in changes else letters
    changes.pop("prompt_data", None)
    with pytest.raises(DataError, match=message):
        source(path, **changes).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not the state of a data source"),
        (b"\x80\x04K\x01.", "not the state of a data source"),
        (msgspec.msgpack.encode({"format": "espalier-data-source", "version": 9}), "has version 9"),
        (msgspec.msgpack.encode({"format": "espalier-data-source", "version": 1}), "damaged: .*rollout_id"),
    ],
)
def test_a_file_that_is_no_state_is_told(letters: Path, content: bytes, message: str) -> None:
    path = state_path(letters.parent, 0)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"data_source_state_0\.msgpack: {message}"):
        source(letters).load()


def test_a_state_that_is_not_there_is_told(letters: Path) -> None:
    with pytest.raises(DataError, match=r"data_source_state_7\.msgpack: No such file"):
        source(letters).load(7)


def test_a_process_that_is_killed_in_the_middle_of_writing_leaves_the_state_before(letters: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", SAVE_TOO_MUCH, str(letters.parent)], check=False)
    assert ended.returncode == -signal.SIGXFSZ
    path = state_path(letters.parent, 0)
    assert path.with_name(f"{path.name}.partial").stat().st_size == 100_000
    data = source(letters, n_samples_per_prompt=8)
    assert data.load() == 0
    assert data.get_metadata() == {"count": 0}
    data.save(0)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("saves", [1, 4, 9])
def test_a_process_that_is_killed_while_saving_leaves_a_whole_state(letters: Path, saves: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SAVE_UNTIL_KILLED, str(letters.parent)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(saves)]
        os.kill(process.pid, signal.SIGKILL)  # it is somewhere within its next save
        told += [int(line) for line in process.stdout.read().split()]
    counts = []
    for rollout_id in {count % 3 for count in told}:
        data = source(letters, n_samples_per_prompt=8)
        assert data.load(rollout_id) == rollout_id
        counts.append(data.get_metadata()["count"])
        assert data.get_metadata()["filler"] == str(counts[-1] % 10) * 400_000
        assert data.get_buffer_length() == 1
    assert max(counts) >= max(told)


def test_a_run_goes_on_after_the_last_step_that_was_saved(
    make_config: Callable[..., RolloutConfig], tmp_path: Path
) -> None:
    console = Console(file=io.StringIO())
    assert run(make_config(num_rollout=2, save=tmp_path), console=console) == 0
    more = make_config(num_rollout=3, load=tmp_path, output_dir=tmp_path / "more")
    assert run(more, console=console) == 0
    samples = [json.loads(line) for line in (tmp_path / "more" / "samples.jsonl").read_text().splitlines()]
    assert {sample["rollout_id"] for sample in samples} == {2}
    assert [sample["index"] for sample in samples] == list(range(24, 36))
