"""Prompts in groups, for as many epochs as it takes; groups that were cut off go first.

Source: slime's data sources, their names and signatures. Unlike there: a request wraps over as many epochs
as it needs, shuffling leaves the global `random` alone, the buffer is saved too, and an empty dataset is an
error.
"""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec

from ..errors import ConfigError, DataError, PluginError
from ..registry import Registry
from .config import RolloutConfig
from .dataset import load_problems, mark_of
from .images import IMAGES
from .sample import Sample
from .source_state import (
    SourceState,
    newest_rollout_id,
    read_state,
    restored_groups,
    saved_groups,
    write_state,
)

BufferFilter: TypeAlias = Callable[[RolloutConfig, int | None, list[list[Sample]], int], list[list[Sample]]]
"""`f(args, rollout_id, buffer, num_samples)`: take at most so many groups out of `buffer` and return them.

`rollout_id` is None, as slime passes it. What it leaves in the buffer stays there; what it takes out without
returning it is gone.
"""


def _buffer_filter(
    args: RolloutConfig, rollout_id: int | None, buffer: list[list[Sample]], num_samples: int
) -> object: ...


buffer_filters: Registry[BufferFilter] = Registry("buffer filter", expects=_buffer_filter)
"""Which of the groups in the buffer are handed out next."""


class DataSource(Protocol):
    """Where a rollout's groups come from."""

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """Return `num_samples` groups of pending samples."""
        ...

    def __len__(self) -> int:
        """Return the number of prompts in an epoch."""
        ...


@buffer_filters.register("pop_first")
def pop_first(
    args: RolloutConfig,  # noqa: ARG001  a buffer filter's signature
    rollout_id: int | None,  # noqa: ARG001
    buffer: list[list[Sample]],
    num_samples: int,
) -> list[list[Sample]]:
    """Take the groups that have been in the buffer for longest."""
    taken = buffer[:num_samples]
    del buffer[:num_samples]
    return taken


class RolloutDataSource:
    """Groups of `n_samples_per_prompt` samples, prompt by prompt.

    Group and sample indexes only ever grow, over epochs too. With `rollout_shuffle` each epoch has an order
    of its own, a function of the seed and the epoch alone. `metadata` is the caller's own, and is saved with
    the rest. There is no `add_samples`: a source that has it takes groups back (slime's has one that raises).
    """

    def __init__(self, args: RolloutConfig) -> None:
        """Read the whole dataset.

        Raises: DataError naming file, row and reason; ConfigError where reading it takes what is not there.
        """
        self.args = args
        self.problems = load_problems(args)
        self.metadata: dict[str, Any] = {}
        self.epoch_id = 0
        self.sample_offset = 0
        self.sample_group_index = 0
        self.sample_index = 0
        self._shuffle_seed = args.rollout_seed if args.rollout_shuffle else None
        self._mark = mark_of(self.problems)
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

    def save(self, rollout_id: int) -> None:
        """Write where the source is to the `save` folder, on disk when this returns.

        Groups that are out are not in it: call this between rollouts, after `add_samples`.

        Raises: ConfigError without `save`; EspalierError where the folder cannot be written; Unsavable where
        a sample in the buffer holds what cannot be saved.
        """
        if self.args.save is None:
            raise ConfigError("there is no folder to save the data source's state in: give --save")
        write_state(Path(self.args.save), self._state(rollout_id))

    def load(self, rollout_id: int | None = None) -> int | None:
        """Go on from the state after `rollout_id` in the `load` folder, or after the last one that is there.

        Returns the rollout whose state was read; None where there is nothing to go on from: no `load`, a
        `rollout_id` below 0, or no state in the folder yet.

        Raises: DataError where the state is missing, unreadable or that of another dataset or order; the
        source is then unchanged.
        """
        if self.args.load is None or (rollout_id is not None and rollout_id < 0):
            return None
        folder = Path(self.args.load)
        found = rollout_id if rollout_id is not None else newest_rollout_id(folder)
        if found is None:
            return None
        state = read_state(folder, found)
        self._check_fits(state)
        self._restore(state)
        return found

    def get_metadata(self) -> dict[str, Any]:
        """Return what the caller had saved with the source."""
        return self.metadata

    def update_metadata(self, metadata: dict[str, Any]) -> None:
        """Add to what is saved with the source."""
        self.metadata = {**self.metadata, **metadata}

    def _state(self, rollout_id: int) -> SourceState:
        return SourceState(
            rollout_id=rollout_id,
            dataset=self._mark,
            shuffle_seed=self._shuffle_seed,
            epoch_id=self.epoch_id,
            sample_offset=self.sample_offset,
            sample_group_index=self.sample_group_index,
            sample_index=self.sample_index,
            metadata=self.metadata,
        )

    def _restore(self, state: SourceState) -> None:
        if state.buffer:
            raise DataError(
                f"the state after rollout {state.rollout_id} holds {len(state.buffer)} groups that were cut "
                "off: use RolloutDataSourceWithBuffer"
            )
        self.epoch_id = state.epoch_id
        self.sample_offset = state.sample_offset
        self.sample_group_index = state.sample_group_index
        self.sample_index = state.sample_index
        self.metadata = state.metadata
        self._order = self._order_of(self.epoch_id)

    def _check_fits(self, state: SourceState) -> None:
        saved = f"the state after rollout {state.rollout_id} in {self.args.load}"
        if state.dataset != self._mark or not 0 <= state.sample_offset <= len(self):
            raise DataError(
                f"{saved} is that of another dataset: {state.dataset.prompts} prompts, where "
                f"{self.args.prompt_data} has {len(self)}, or others"
            )
        if state.shuffle_seed != self._shuffle_seed:
            raise DataError(
                f"{saved} is that of another order: it was shuffled with seed {state.shuffle_seed}, "
                f"this run with {self._shuffle_seed} (None: not shuffled). "
                "Give the same --rollout-shuffle and --rollout-seed"
            )

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
                prompt=copy.deepcopy(problem.prompt),
                label=copy.deepcopy(problem.label),
                metadata=copy.deepcopy(problem.metadata),
                multimodal_inputs={IMAGES: list(problem.images)} if problem.images else None,
            )
            for position in range(self.args.n_samples_per_prompt)
        ]
        self.sample_offset += 1
        self.sample_group_index += 1
        self.sample_index += len(group)
        return group

    def _order_of(self, epoch_id: int) -> list[int]:
        order = list(range(len(self.problems)))
        if self._shuffle_seed is not None:
            random.Random(f"{self._shuffle_seed}/{epoch_id}").shuffle(order)
        return order


class RolloutDataSourceWithBuffer(RolloutDataSource):
    """Hands out the groups that were given back, partial responses and all, before new prompts.

    Which of them, and in which order, is up to the buffer filter (`buffer_filter_path`; `pop_first` by
    default).
    """

    def __init__(self, args: RolloutConfig) -> None:
        """Read the whole dataset and look up the buffer filter.

        Raises: DataError naming file, line and reason; PluginError where there is no such filter.
        """
        super().__init__(args)
        self.buffer: list[list[Sample]] = []
        self.buffer_filter = buffer_filters.resolve(args.buffer_filter_path or "pop_first")

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """Return `num_samples` groups: from the buffer what the filter gives, the rest from the dataset.

        Raises: PluginError where the filter returns anything but at most so many groups.
        """
        groups = self._buffered(num_samples)
        return groups + super().get_samples(num_samples - len(groups))

    def add_samples(self, samples: list[list[Sample]]) -> None:
        """Put groups into the buffer.

        Raises: ValueError where one has not `n_samples_per_prompt` samples; the buffer is then unchanged.
        """
        size = self.args.n_samples_per_prompt
        for group in samples:
            if not isinstance(group, list) or not all(isinstance(sample, Sample) for sample in group):
                raise ValueError("the buffer takes groups: lists of samples")
            if len(group) != size:
                raise ValueError(f"a group of {len(group)} samples, where each prompt has {size}")
        self.buffer.extend(samples)

    def get_buffer_length(self) -> int:
        """Return how many groups are in the buffer."""
        return len(self.buffer)

    def _buffered(self, num_samples: int) -> list[list[Sample]]:
        if not self.buffer or num_samples <= 0:
            return []
        groups: object = self.buffer_filter(self.args, None, self.buffer, num_samples)
        name = self.args.buffer_filter_path
        if not isinstance(groups, list):
            raise PluginError(f"the buffer filter {name!r} must return a list, not {type(groups).__name__}")
        if len(groups) > num_samples:
            raise PluginError(f"the buffer filter {name!r} returned {len(groups)} groups, not {num_samples}")
        return groups

    def _state(self, rollout_id: int) -> SourceState:
        return msgspec.structs.replace(super()._state(rollout_id), buffer=saved_groups(self.buffer))

    def _restore(self, state: SourceState) -> None:
        groups = restored_groups(state)
        size = self.args.n_samples_per_prompt
        odd = next((len(group) for group in groups if len(group) != size), None)
        if odd is not None:
            raise DataError(
                f"the state after rollout {state.rollout_id} holds groups of {odd} samples: give the same "
                f"--n-samples-per-prompt, not {size}"
            )
        super()._restore(msgspec.structs.replace(state, buffer=[]))
        self.buffer = groups
