"""Prompts from a JSONL file, in groups, for as many epochs as it takes."""

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..errors import DataError
from .config import RolloutConfig
from .sample import Sample


class DataSource(Protocol):
    """Where a rollout's groups come from."""

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """Return `num_samples` groups of pending samples."""
        ...

    def __len__(self) -> int:
        """Return the number of prompts in an epoch."""
        ...


@dataclass(frozen=True, slots=True)
class Problem:
    """One line of a dataset."""

    line: int
    """where in the file, from 1"""

    prompt: str
    label: Any
    metadata: dict[str, Any]


class RolloutDataSource:
    """Groups of `n_samples_per_prompt` samples, prompt by prompt.

    Group and sample indexes only ever grow, over epochs too. With `rollout_shuffle` each epoch has an order
    of its own, a function of the seed and the epoch alone; the global `random` is left as it is. A request
    for more groups than there are prompts wraps as often as it takes (slime wraps once).
    """

    def __init__(self, args: RolloutConfig) -> None:
        """Read the whole dataset.

        Raises: DataError naming file, line and reason.
        """
        self.problems = load_problems(
            args.prompt_data,
            input_key=args.input_key,
            label_key=args.label_key,
            metadata_key=args.metadata_key,
        )
        self._samples_per_prompt = args.n_samples_per_prompt
        self._seed = args.rollout_seed
        self._is_shuffled = args.rollout_shuffle
        self.epoch_id = 0
        self.sample_offset = 0
        self.sample_group_index = 0
        self.sample_index = 0
        self._order = self._order_of(self.epoch_id)

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.problems)

    def reward_names(self) -> list[str]:
        """Return the rewards that the prompts' metadata name as `rm_type`, sorted."""
        named = (problem.metadata.get("rm_type") for problem in self.problems)
        return sorted({name for name in named if isinstance(name, str)})

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """Return the next `num_samples` groups."""
        return [self._next_group() for _ in range(num_samples)]

    def _next_group(self) -> list[Sample]:
        if self.sample_offset == len(self.problems):
            self.epoch_id += 1
            self.sample_offset = 0
            self._order = self._order_of(self.epoch_id)
        problem = self.problems[self._order[self.sample_offset]]
        group = [
            Sample(
                group_index=self.sample_group_index,
                index=self.sample_index + position,
                prompt=problem.prompt,
                label=problem.label,
                metadata=copy.deepcopy(problem.metadata),
            )
            for position in range(self._samples_per_prompt)
        ]
        self.sample_offset += 1
        self.sample_group_index += 1
        self.sample_index += len(group)
        return group

    def _order_of(self, epoch_id: int) -> list[int]:
        order = list(range(len(self.problems)))
        if self._is_shuffled:
            random.Random(f"{self._seed}/{epoch_id}").shuffle(order)
        return order


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
    return Problem(line=number, prompt=prompt, label=values.get(label_key), metadata=metadata)
