"""What a run leaves on disk: a line of `samples.jsonl` a sample, of the other files a step.

`metrics.jsonl` holds a step's metrics, `requests.jsonl` when its requests began and ended.

Invariant: the samples of a step are there if and only if its line of metrics is, and the results of an
earlier run are there until this one has some. The files begin as `*.partial` and take their names with the
first step; a step that cannot be written whole is taken back.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from ..errors import ConfigError, EspalierError
from .metrics import Metrics
from .timeline import Timeline, encode_timeline


class RunWriter:
    """Writes a run's files; each step is on disk when its `write` returns. Use as a context manager."""

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        """Make the folder and open the files, before any work is done.

        Raises: ConfigError where that cannot be, or files are there already and `overwrite` is off.
        """
        self.samples_path = folder / "samples.jsonl"
        self.metrics_path = folder / "metrics.jsonl"
        self.requests_path = folder / "requests.jsonl"
        self.is_published = False
        """a step of this run is in the files"""
        self._files: dict[Path, IO[bytes]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in (self.samples_path, self.metrics_path, self.requests_path):
                _check_target(folder, path, overwrite=overwrite)
                self._files[path] = _partial(path).open("wb", buffering=0)
        except OSError as error:
            self._discard()
            raise ConfigError(f"--output-dir {folder}: {error.strerror or error}") from None
        except ConfigError:
            self._discard()
            raise

    def write(
        self, rollout_id: int, lines: bytes, metrics: Metrics, timeline: Timeline | None = None
    ) -> None:
        """Append a step: the encoded `lines` of its samples, its metrics, and when its requests ran.

        Raises: EspalierError where the disk is full or gone; the files are then as they were before.
        """
        metrics_line = msgspec.json.encode({"rollout_id": rollout_id, **metrics}) + b"\n"
        sizes = {path: file.tell() for path, file in self._files.items()}
        try:
            _append(self._files[self.samples_path], lines)
            if timeline is not None:
                _append(self._files[self.requests_path], encode_timeline(rollout_id, timeline))
            _append(self._files[self.metrics_path], metrics_line)
            if not self.is_published:
                for path in self._files:
                    _partial(path).replace(path)
                self.is_published = True
        except BaseException as error:
            for path, file in self._files.items():
                file.seek(sizes[path])
                file.truncate()
            if isinstance(error, OSError):
                folder = self.samples_path.parent
                raise EspalierError(f"{folder} cannot be written: {error.strerror or error}") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        """Close the files, and remove them where nothing came of them."""
        for path, file in self._files.items():
            file.close()
            if not self.is_published:
                _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _check_target(folder: Path, path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise ConfigError(f"--output-dir {folder}: {path.name} is a folder")
    if path.exists() and not overwrite:
        raise ConfigError(f"--output-dir {folder}: {path.name} is there already; --overwrite replaces it")


def _append(file: IO[bytes], content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())
