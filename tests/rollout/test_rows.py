import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from espalier.errors import DataError
from espalier.rollout.rows import read_rows

ROWS = [{"prompt": letter, "label": {"answer": number}} for number, letter in enumerate("abcde")]


def write_jsonl(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    return path


def write_parquet(folder: Path) -> Path:
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    return path


def write_saved(folder: Path) -> Path:
    """Write what `Dataset.save_to_disk` writes, as far as it is read."""
    path = folder / "saved"
    path.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, rows in zip(names, (ROWS[:3], ROWS[3:]), strict=True):
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(path / name, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (path / "state.json").write_text(json.dumps(state))
    return path


WRITERS = [write_jsonl, write_parquet, write_saved]


def prompts(dataset: Path | str) -> str:
    return "".join(row.values["prompt"] for row in read_rows(dataset))


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, write: Any) -> None:
    assert [row.values for row in read_rows(write(tmp_path))] == ROWS


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("[1:3]", "bc"),
        ("[:2]", "ab"),
        ("[3:]", "de"),
        ("[-2:]", "de"),
        ("[:-3]", "ab"),
        ("[2:99]", "cde"),
        ("[:]", "abcde"),
    ],
)
def test_a_slice_is_pythons(tmp_path: Path, write: Any, part: str, expected: str) -> None:
    assert prompts(f"{write(tmp_path)}@{part}") == expected


@pytest.mark.parametrize("write", WRITERS)
def test_an_empty_slice_is_told(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path)
    for part in ("[5:]", "[3:1]"):
        with pytest.raises(DataError, match=r"@\[\d:1?\]: the slice is empty"):
            prompts(f"{path}@{part}")


def test_rows_keep_their_numbers_in_a_slice(tmp_path: Path) -> None:
    numbers = {
        write: [row.where.rpartition(", ")[2] for row in read_rows(f"{write(tmp_path)}@[3:]")]
        for write in WRITERS
    }
    assert numbers[write_parquet] == numbers[write_saved] == ["row 4", "row 5"]
    assert numbers[write_jsonl] == ["line 7", "line 9"]  # every other line is blank


def test_lines_outside_of_the_slice_may_be_malformed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    assert prompts(f"{path}@[:1]") == "a"
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        prompts(f"{path}@[1:]")


def test_a_damaged_parquet_file_is_told(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"rows\.parquet: not a readable Parquet file"):
        prompts(path)
    with pytest.raises(DataError, match=r"gone\.parquet: .*No such file"):
        prompts(tmp_path / "gone.parquet")


def test_a_folder_of_splits_says_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"holds the splits train, test: give one, as .*/train"):
        prompts(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "there is no state.json"),
        ("{}", "its index is malformed"),
        ('{"_data_files": [{"filename": "../rows.arrow"}]}', r"'\.\./rows\.arrow' is no file of this folder"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "No such file"),
        ('{"_data_files": [{"filename": "state.json"}]}', "not a readable dataset"),
        ('{"_data_files": []}', "the dataset is empty"),
    ],
)
def test_a_folder_that_is_no_dataset_is_told(tmp_path: Path, index: str | None, message: str) -> None:
    if index is not None:
        (tmp_path / "state.json").write_text(index)
    with pytest.raises(DataError, match=message):
        prompts(tmp_path)
