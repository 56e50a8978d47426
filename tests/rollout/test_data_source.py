import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import DataError
from espalier.rollout import RolloutConfig, RolloutDataSource
from espalier.simulator.arithmetic import read_problem

EXAMPLES = Path(__file__).parents[2] / "examples"


def source(path: Path, **changes: Any) -> RolloutDataSource:
    return RolloutDataSource(RolloutConfig(prompt_data=path, n_samples_per_prompt=2, **changes))


def prompts(path: Path, count: int, **changes: Any) -> list[str]:
    return [str(group[0].prompt) for group in source(path, **changes).get_samples(count)]


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": letter, "label": 0}) for letter in "abcde") + "\n\n")
    return path


def test_groups_have_as_many_samples_as_asked_with_growing_indexes(letters: Path) -> None:
    data = source(letters)
    groups = data.get_samples(2) + data.get_samples(1)
    assert [[sample.index for sample in group] for group in groups] == [[0, 1], [2, 3], [4, 5]]
    assert [group[0].group_index for group in groups] == [0, 1, 2]
    assert [(group[1].prompt, group[1].label) for group in groups] == [("a", 0), ("b", 0), ("c", 0)]
    assert len(data) == 5


def test_a_request_wraps_as_often_as_it_takes(letters: Path) -> None:
    data = source(letters)
    groups = data.get_samples(12)
    assert "".join(str(group[0].prompt) for group in groups) == "abcdeabcdeab"
    assert [group[0].group_index for group in groups] == list(range(12))
    assert (data.epoch_id, data.sample_offset) == (2, 2)


def test_samples_do_not_share_their_metadata_or_label(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "a", "label": ["4"], "metadata": {"tags": []}}')
    first, second = source(path).get_samples(1)[0]
    first.metadata["tags"].append("x")
    first.label.append("5")
    assert second.metadata == {"tags": []}
    assert second.label == ["4"]


def test_shuffle_is_a_function_of_seed_and_epoch_and_leaves_the_global_random_alone(letters: Path) -> None:
    state = random.getstate()
    shuffled = prompts(letters, 10, rollout_shuffle=True, rollout_seed=1)
    assert random.getstate() == state
    assert shuffled == prompts(letters, 10, rollout_shuffle=True, rollout_seed=1)
    assert shuffled != prompts(letters, 10, rollout_shuffle=True, rollout_seed=2)
    assert sorted(shuffled[:5]) == sorted(shuffled[5:]) == list("abcde")
    assert shuffled[:5] != shuffled[5:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "line 2: not valid JSON"),
        ('{"prompt": "a"}\n\n["a"]\n', "line 3: expected a JSON object"),
        ('{"input": "a"}\n', "line 1: no key 'prompt', only 'input'"),
        ('{"prompt": ""}\n', "line 1: 'prompt' must be a text that is not empty"),
        ('{"prompt": [{"role": "user"}]}\n', "line 1: 'prompt' must be a text"),
        ('{"prompt": "a", "metadata": 5}\n', "line 1: 'metadata' must be a JSON object"),
        ("\n\n", "the dataset is empty"),
    ],
)
def test_bad_dataset_is_told_with_file_line_and_reason(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        source(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_undecodable_bytes_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"line 2: not valid JSON"):
        source(path)


def test_missing_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: No such file"):
        source(tmp_path / "gone.jsonl")


def test_keys_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "mapped.jsonl"
    path.write_text('{"q": "a", "a": 4, "extra": {"rm_type": "random"}}')
    data = source(path, input_key="q", label_key="a", metadata_key="extra")
    sample = data.get_samples(1)[0][0]
    assert (sample.prompt, sample.label, sample.metadata) == ("a", 4, {"rm_type": "random"})
    assert data.reward_names() == ["random"]


def test_shipped_dataset_is_what_its_script_makes() -> None:
    spec = importlib.util.spec_from_file_location("make_arithmetic", EXAMPLES / "make_arithmetic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = EXAMPLES / "data" / "arithmetic.jsonl"
    assert shipped.read_text(encoding="utf-8") == module.dataset()


def test_shipped_labels_are_right_and_the_simulated_worker_can_read_the_problems() -> None:
    groups = source(EXAMPLES / "data" / "arithmetic.jsonl").get_samples(200)
    assert len({group[0].prompt for group in groups}) == 200
    for group in groups:
        problem = read_problem(str(group[0].prompt))
        assert problem is not None
        assert str(problem.answer) == group[0].label
