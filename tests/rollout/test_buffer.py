from pathlib import Path
from typing import Any

import pytest

from espalier.errors import PluginError
from espalier.rollout import RolloutConfig, RolloutDataSource, RolloutDataSourceWithBuffer, Sample
from espalier.rollout.data_source import pop_first


def take_last(args: object, rollout_id: object, buffer: list[list[Sample]], num: int) -> list[list[Sample]]:
    return [buffer.pop() for _ in range(min(num, len(buffer)))]


def drop_stale(args: object, rollout_id: object, buffer: list[list[Sample]], num: int) -> list[list[Sample]]:
    assert rollout_id is None
    buffer[:] = [group for group in buffer if not group[0].metadata.get("stale")]
    return pop_first(args, None, buffer, num)  # type: ignore[arg-type]  # it reads no settings


def take_nothing_at_all(args: object, rollout_id: object, buffer: list[list[Sample]], num: int) -> None: ...


def take_too_many(args: object, rollout_id: object, buffer: list[list[Sample]], num: int) -> object:
    return buffer + buffer


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters.jsonl"
    path.write_text("".join(f'{{"prompt": "{letter}"}}\n' for letter in "abcde"))
    return path


def source(path: Path, **changes: Any) -> RolloutDataSourceWithBuffer:
    return RolloutDataSourceWithBuffer(RolloutConfig(prompt_data=path, n_samples_per_prompt=2, **changes))


def prompts(groups: list[list[Sample]]) -> str:
    return "".join(str(group[0].prompt) for group in groups)


def test_what_was_given_back_goes_first_and_the_dataset_fills_up(letters: Path) -> None:
    data = source(letters)
    first = data.get_samples(2)
    data.add_samples(first[::-1])
    assert data.get_buffer_length() == 2
    again = data.get_samples(3)
    assert prompts(again) == "bac"
    assert again[0] is first[1]
    assert data.get_buffer_length() == 0


def test_the_oldest_groups_go_first_and_the_others_stay(letters: Path) -> None:
    data = source(letters)
    data.add_samples(data.get_samples(3))
    assert prompts(data.get_samples(2)) == "ab"
    assert prompts(data.buffer) == "c"


def test_a_request_for_nothing_takes_nothing(letters: Path) -> None:
    data = source(letters)
    data.add_samples(data.get_samples(1))
    assert data.get_samples(0) == []
    assert prompts(data.buffer) == "a"


@pytest.mark.parametrize(("name", "expected"), [("take_last", "cbad"), ("drop_stale", "acde")])
def test_a_buffer_filter_chooses_what_goes_first(letters: Path, name: str, expected: str) -> None:
    data = source(letters, buffer_filter_path=f"{__name__}.{name}")
    groups = data.get_samples(3)
    groups[1][0].metadata["stale"] = True
    data.add_samples(groups)
    assert prompts(data.get_samples(4)) == expected
    assert data.buffer == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{__name__}.take_nothing_at_all", "must return a list, not NoneType"),
        (f"{__name__}.take_too_many", "returned 2 groups, not 1"),
    ],
)
def test_a_buffer_filter_that_breaks_its_contract_is_told(letters: Path, name: str, message: str) -> None:
    data = source(letters, buffer_filter_path=name)
    data.add_samples(data.get_samples(1))
    with pytest.raises(PluginError, match=message):
        data.get_samples(1)


def test_an_unknown_or_ill_typed_buffer_filter_is_told_at_once(letters: Path) -> None:
    with pytest.raises(PluginError, match="unknown buffer filter 'pop_frist': known are pop_first"):
        source(letters, buffer_filter_path="pop_frist")
    with pytest.raises(PluginError, match="has the signature"):
        source(letters, buffer_filter_path="math:sqrt")


def test_groups_of_another_size_are_refused_and_leave_the_buffer_as_it_was(letters: Path) -> None:
    data = source(letters)
    good = data.get_samples(1)
    with pytest.raises(ValueError, match="a group of 1 samples, where each prompt has 2"):
        data.add_samples([*good, [Sample()]])
    with pytest.raises(ValueError, match="lists of samples"):
        data.add_samples([[Sample(), [Sample()]]])  # type: ignore[list-item]  # a caller's mistake
    assert data.buffer == []


def test_whether_a_source_takes_groups_back_can_be_seen(letters: Path) -> None:
    assert hasattr(source(letters), "add_samples")
    assert not hasattr(RolloutDataSource(RolloutConfig(prompt_data=letters)), "add_samples")
