"""What a run leaves on disk: `samples.jsonl`, one sample a line, and `metrics.jsonl`, one step a line."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from ..errors import ConfigError
from ..sglang import WeightSpan
from .metrics import Metrics
from .rewards import RewardValue
from .sample import Sample


class SampleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `samples.jsonl`: what training needs, and nothing that differs from run to run.

    `tokens` are the prompt's and the response's; `loss_mask` and `rollout_log_probs` (nats) have one entry
    for each of the last `response_length` of them, and `weight_spans` count from the response's start.
    """

    rollout_id: int
    group_index: int | None
    index: int | None
    prompt: str | list[dict[str, object]]
    response: str
    label: object
    reward: RewardValue | None
    status: str
    tokens: list[int]
    response_length: int
    loss_mask: list[int] | None
    rollout_log_probs: list[float] | None
    weight_versions: list[str]
    weight_spans: list[WeightSpan]
    metadata: dict[str, object]

    @classmethod
    def of(cls, sample: Sample, rollout_id: int) -> Self:
        """Return the record of `sample`."""
        return cls(
            rollout_id=rollout_id,
            group_index=sample.group_index,
            index=sample.index,
            prompt=sample.prompt,
            response=sample.response,
            label=sample.label,
            reward=sample.reward,
            status=sample.status.value,
            tokens=sample.tokens,
            response_length=sample.response_length,
            loss_mask=sample.loss_mask,
            rollout_log_probs=sample.rollout_log_probs,
            weight_versions=sample.weight_versions,
            weight_spans=sample.weight_spans,
            metadata=sample.metadata,
        )


class RunWriter:
    """Writes a run's files; each step is on disk when its `write` returns. Use as a context manager."""

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        """Make the folder and open the files, before any work is done.

        Raises: ConfigError where that cannot be, or files are there already and `overwrite` is off.
        """
        self.samples_path = folder / "samples.jsonl"
        self.metrics_path = folder / "metrics.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not overwrite:
                _check_absent(folder, (self.samples_path, self.metrics_path))
            self._samples = self.samples_path.open("wb")
            self._metrics = self.metrics_path.open("wb")
        except OSError as error:
            raise ConfigError(f"--output-dir {folder}: {error.strerror or error}") from None

    def write(self, rollout_id: int, groups: Sequence[Sequence[Sample]], metrics: Metrics) -> None:
        """Append a step.

        Raises: OSError where the disk is full or gone.
        """
        encode = msgspec.json.encode
        for group in groups:
            for sample in group:
                self._samples.write(encode(SampleRecord.of(sample, rollout_id)) + b"\n")
        self._metrics.write(encode({"rollout_id": rollout_id, **metrics}) + b"\n")
        for file in (self._samples, self._metrics):
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._samples.close()
        self._metrics.close()


def _check_absent(folder: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        if path.exists():
            raise ConfigError(f"--output-dir {folder}: {path.name} is there already; --overwrite replaces it")
