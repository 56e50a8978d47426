"""Training arrays on disk: `arrays/step_N.npz` in the output folder, one file a step.

They are packed (`PackedArrays`), under the names of its fields, and `numpy.load` reads them without pickle.
"""

import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigError, DataError, EspalierError
from .sample import RewardKey, Sample
from .training_arrays import packed_arrays


def check_arrays_can_be_made() -> None:
    """Check that numpy is there.

    Raises: ConfigError that tells how to get it.
    """
    if find_spec("numpy") is None:
        raise ConfigError("--save-arrays needs numpy: pip install 'espalier[numpy]'")


def write_arrays(folder: Path, rollout_id: int, groups: Sequence[Sequence[Sample]], args: RewardKey) -> Path:
    """Write the arrays of a step below `folder`, whole or not at all, and return the file.

    Without `log_probs` where no sample has any, as in supervised training.

    Raises: DataError naming the sample that no arrays can be made of; EspalierError where the file cannot be
    written.
    """
    import numpy as np  # noqa: PLC0415  an extra

    has_log_probs = any(sample.rollout_log_probs is not None for group in groups for sample in group)
    try:
        arrays = packed_arrays([list(group) for group in groups], args, with_log_probs=has_log_probs)
    except ValueError as error:
        raise DataError(f"no training arrays of step {rollout_id}: {error}") from error
    path = folder / "arrays" / f"step_{rollout_id}.npz"
    partial = path.with_name(f"{path.name}.partial")
    found = {field.name: getattr(arrays, field.name) for field in dataclasses.fields(arrays)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **{name: array for name, array in found.items() if array is not None})
        partial.replace(path)
    except OSError as error:
        raise EspalierError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
