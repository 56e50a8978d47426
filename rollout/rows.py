"""Rows of a dataset on disk: a JSONL file, a Parquet file, or a folder that `datasets` saved.

A slice of it is named as `PATH@[START:END]`, with Python's rules: either end may be left out or negative.
Arrow's formats need pyarrow, which is loaded only for them; a folder is read without `datasets`, since it
holds Arrow streams and a list of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from ..errors import ConfigError, DataError

_SLICE = re.compile(r"(.+)@\[(-?\d*):(-?\d*)\]")
_BATCH_ROWS: Final = 1024
"""Rows made into Python's objects at a time, so that a slice of a large file stays small."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row, by key."""

    where: str
    """its file and number, from 1, as messages name them"""

    values: dict[str, Any]


def read_rows(dataset: Path | str) -> Iterator[Row]:
    """Yield the rows of a dataset, or of a slice of it.

    Raises: DataError naming the file, the row and the reason, where it is missing, malformed or empty;
    ConfigError where it takes a package that is not installed.
    """
    match = _SLICE.fullmatch(str(dataset))
    path = Path(match[1]) if match else Path(dataset)
    start, end = (int(bound) if bound else None for bound in match.groups()[1:]) if match else (None, None)
    part = slice(start, end)
    try:
        if path.is_dir():
            rows = _saved_rows(path, part)
        elif path.suffix == ".parquet":
            rows = _parquet_rows(path, part)
        else:
            rows = _jsonl_rows(path, part)
        is_empty = True
        for row in rows:
            is_empty = False
            yield row
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if is_empty:
        raise DataError(f"{path}: the dataset is empty" if not match else f"{dataset}: the slice is empty")


def dataset_folder(dataset: Path | str) -> Path:
    """Return the folder at which relative paths in the rows begin: the file's, or the dataset's own."""
    match = _SLICE.fullmatch(str(dataset))
    path = Path(match[1]) if match else Path(dataset)
    return path if path.is_dir() else path.parent


def _jsonl_rows(path: Path, part: slice) -> Iterator[Row]:
    with path.open("rb") as file:
        lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
    for number, line in lines[part]:
        where = f"{path}, line {number}"
        try:
            values = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise DataError(f"{where}: expected a JSON object")
        yield Row(where, values)


def _parquet_rows(path: Path, part: slice) -> Iterator[Row]:
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = range(file.metadata.num_rows)[part]
            batches = file.iter_batches(batch_size=_BATCH_ROWS)
            yield from _arrow_rows(path, batches, wanted)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def _saved_rows(folder: Path, part: slice) -> Iterator[Row]:
    pyarrow = _pyarrow(folder)
    try:
        tables = [_stream_table(pyarrow, file) for file in _stream_files(folder)]
        wanted = range(sum(table.num_rows for table in tables))[part]
        batches = (batch for table in tables for batch in table.to_batches(max_chunksize=_BATCH_ROWS))
        yield from _arrow_rows(folder, batches, wanted)
    except pyarrow.ArrowException as error:
        raise DataError(f"{folder}: not a readable dataset: {error}") from None


class _DataFile(msgspec.Struct):
    filename: str


class _SavedState(msgspec.Struct):
    """`state.json`, as `Dataset.save_to_disk` writes it."""

    data_files: list[_DataFile] = msgspec.field(name="_data_files")


class _SavedSplits(msgspec.Struct):
    """`dataset_dict.json`, as `DatasetDict.save_to_disk` writes it."""

    splits: list[str]


def _stream_files(folder: Path) -> list[Path]:
    index, splits = folder / "state.json", folder / "dataset_dict.json"
    try:
        if splits.is_file():
            names = msgspec.json.decode(splits.read_bytes(), type=_SavedSplits).splits
            raise DataError(
                f"{folder}: holds the splits {', '.join(names)}: give one, as {folder}/{names[0]}"
            )
        if not index.is_file():
            raise DataError(f"{folder}: not a dataset that save_to_disk wrote: there is no state.json")
        state = msgspec.json.decode(index.read_bytes(), type=_SavedState)
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
        raise DataError(f"{folder}: its index is malformed: {error}") from None
    for file in state.data_files:
        if Path(file.filename).name != file.filename:
            raise DataError(f"{index}: {file.filename!r} is no file of this folder")
    return [folder / file.filename for file in state.data_files]


def _stream_table(pyarrow: Any, path: Path) -> Any:
    with pyarrow.memory_map(str(path)) as source:
        return pyarrow.ipc.open_stream(source).read_all()


def _arrow_rows(path: Path, batches: Iterator[Any], wanted: range) -> Iterator[Row]:
    """Yield the wanted ones of the rows in `batches`."""
    first = 0
    for batch in batches:
        if first >= wanted.stop:
            return
        start = max(wanted.start - first, 0)
        part = batch.slice(start, max(min(wanted.stop - first, batch.num_rows) - start, 0))
        for number, values in enumerate(part.to_pylist(), start=first + start + 1):
            yield Row(f"{path}, row {number}", values)
        first += batch.num_rows


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow  # noqa: PLC0415  only Arrow's formats need the package
        import pyarrow.ipc  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: needs pyarrow: pip install 'espalier[data]'") from None
    return pyarrow
