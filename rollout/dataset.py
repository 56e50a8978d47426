"""A dataset's rows as problems: what a rollout asks, and what its rewards compare with."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from ..errors import DataError
from .source_state import DatasetMark


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a dataset."""

    where: str
    """the row's file and number, from 1, as messages name them"""

    prompt: str
    label: Any
    metadata: dict[str, Any]


def load_problems(path: Path, *, input_key: str, label_key: str, metadata_key: str) -> list[Problem]:
    """Read a JSONL dataset; blank lines are passed over.

    Raises: DataError naming file, line and reason; also for a file without any problem.
    """
    problems = [
        _problem(line, number, path, input_key=input_key, label_key=label_key, metadata_key=metadata_key)
        for number, line in _numbered_lines(path)
    ]
    if not problems:
        raise DataError(f"{path}: the dataset is empty")
    return problems


def mark_of(problems: list[Problem]) -> DatasetMark:
    """Return what tells the dataset from others: its prompts, in order."""
    digest = blake2b(digest_size=16)
    for problem in problems:
        digest.update(msgspec.json.encode(problem.prompt) + b"\n")
    return DatasetMark(prompts=len(problems), digest=digest.hexdigest())


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _problem(
    line: bytes, number: int, path: Path, *, input_key: str, label_key: str, metadata_key: str
) -> Problem:
    where = f"{path}, line {number}"
    try:
        values = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{where}: expected a JSON object")
    if input_key not in values:
        raise DataError(f"{where}: no key {input_key!r}, only {', '.join(map(repr, values)) or 'none'}")
    prompt, metadata = values[input_key], values.get(metadata_key) or {}
    if not isinstance(prompt, str) or not prompt:
        raise DataError(f"{where}: {input_key!r} must be a text that is not empty")
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: {metadata_key!r} must be a JSON object")
    return Problem(where=where, prompt=prompt, label=values.get(label_key), metadata=metadata)
