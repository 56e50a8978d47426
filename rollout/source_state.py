"""Where a data source is, on disk: so that a run that was stopped goes on with the prompt after the last.

Invariant: a state file is whole or not there, whenever the process or the machine stops. It is written to
`NAME.partial` beside it and flushed to the disk before it takes its name, and so is the folder.

The format is MessagePack, which holds floats exactly, NaN included, and bytes. Reading it runs no code, as
unpickling would.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ..errors import DataError, EspalierError
from .problems import Unsavable
from .records import plain_value
from .sample import Sample

FORMAT: Final = "espalier-data-source"
VERSION: Final = 1
"""Raised when a file of before can no longer be read as one of now."""

_NAME = re.compile(r"data_source_state_(\d+)\.msgpack")


class DatasetMark(msgspec.Struct, frozen=True, kw_only=True):
    """Tells a dataset from another: a position in one means nothing in the other."""

    prompts: int
    digest: str
    """of the prompts in order, hexadecimal"""


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a data source goes on from. Indexes are those of the next group and sample."""

    format: str = FORMAT
    version: int = VERSION
    rollout_id: int
    dataset: DatasetMark
    shuffle_seed: int | None
    """None: the dataset's own order"""
    epoch_id: int
    sample_offset: int
    """prompts handed out in this epoch"""
    sample_group_index: int
    sample_index: int
    metadata: dict[str, Any] = {}
    """the caller's own"""
    buffer: list[list[dict[str, Any]]] = []
    """groups to hand out first, as `Sample.to_dict` gives them"""


class _Head(msgspec.Struct):
    format: str = ""
    version: int = 0


def state_path(folder: Path, rollout_id: int) -> Path:
    """Return the file for the state after a rollout, in the run's folder."""
    return folder / "rollout" / f"data_source_state_{rollout_id}.msgpack"


def newest_rollout_id(folder: Path) -> int | None:
    """Return the last rollout whose state is in the run's folder; None where there is none."""
    try:
        names = [path.name for path in (folder / "rollout").iterdir()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"--load {folder}: {error.strerror or error}") from None
    return max((int(match[1]) for match in map(_NAME.fullmatch, names) if match), default=None)


def write_state(folder: Path, state: SourceState) -> None:
    """Write `state` to its file; it is on the disk when this returns.

    Raises: EspalierError where the folder cannot be written; Unsavable naming the sample and the field whose
    value cannot be. What was there before is then there still.
    """
    content = _encoded(state)
    path = state_path(folder, state.rollout_id)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        for changed in (path.parent, folder):
            _flush_folder(changed)
    except OSError as error:
        raise EspalierError(f"--save {folder}: {path.name}: {error.strerror or error}") from error


def read_state(folder: Path, rollout_id: int) -> SourceState:
    """Read the state after a rollout.

    Raises: DataError where the file is missing, is something else, or is of a version that is not known here.
    """
    path = state_path(folder, rollout_id)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    try:
        head = msgspec.msgpack.decode(content, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        head = _Head()
    if head.format != FORMAT:
        raise DataError(f"{path}: not the state of a data source")
    if head.version != VERSION:
        raise DataError(f"{path}: has version {head.version}; this release reads version {VERSION}")
    try:
        return msgspec.msgpack.decode(content, type=SourceState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged: {error}") from None


def saved_groups(groups: Sequence[Sequence[Sample]]) -> list[list[dict[str, Any]]]:
    """Return the groups as a state holds them.

    Without `multimodal_train_inputs`, whose arrays would come back as lists: whoever made them makes them
    again of the pictures.
    """
    return [[{**sample.to_dict(), "multimodal_train_inputs": None} for sample in group] for group in groups]


def restored_groups(state: SourceState) -> list[list[Sample]]:
    """Return the groups that `state` holds.

    Raises: DataError where one is none.
    """
    try:
        return [[Sample.from_dict(values) for values in group] for group in state.buffer]
    except (TypeError, ValueError, msgspec.ValidationError) as error:
        raise DataError(
            f"the state after rollout {state.rollout_id}: a sample in its buffer is damaged: {error}"
        ) from None


def _encoded(state: SourceState) -> bytes:
    try:
        return _encoder.encode(state)
    except Exception as error:  # what encoding a plug-in's value raises is the plug-in's to choose
        raise Unsavable(f"the data source cannot be saved: {_culprit(state) or error}") from error


def _culprit(state: SourceState) -> str | None:
    """Name the first value that cannot be encoded."""
    samples = [(f"sample {sample.get('index')}", sample) for group in state.buffer for sample in group]
    for owner, values in [("its metadata", state.metadata), *samples]:
        for name, value in values.items():
            try:
                _encoder.encode(value)
            except Exception as error:  # noqa: BLE001  as above
                return f"{owner}: {name!r}: {error}"
    return None


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_encoder = msgspec.msgpack.Encoder(enc_hook=plain_value)
