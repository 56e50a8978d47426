"""Metrics for TensorBoard, beside `metrics.jsonl`, which holds the same."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..errors import ConfigError, EspalierError

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class TensorBoardWriter:
    """Writes steps to an event file in `folder`, which is made with the first one.

    `first_rollout_id` is the run's first step: of earlier runs in the folder, TensorBoard shows what was
    before it.
    """

    def __init__(self, folder: Path, *, first_rollout_id: int = 0) -> None:
        """Check that the library is there, without importing it.

        Raises: ConfigError that tells how to get it.
        """
        if find_spec("tensorboardX") is None:
            raise ConfigError("--use-tensorboard needs tensorboardX: pip install 'espalier[tensorboard]'")
        self.folder = folder
        self._first_rollout_id = first_rollout_id
        self._events: SummaryWriter | None = None

    def write(self, rollout_id: int, metrics: Mapping[str, float | None]) -> None:
        """Append a step's metrics; what was not measured is left out.

        Raises: EspalierError where the file cannot be written.
        """
        try:
            events = self._events = self._events or self._opened()
            for name, value in metrics.items():
                if value is not None:
                    events.add_scalar(name, value, rollout_id)
            events.flush()
        except OSError as error:
            raise EspalierError(f"{self.folder} cannot be written: {error.strerror or error}") from error

    def _opened(self) -> "SummaryWriter":
        from tensorboardX import SummaryWriter  # noqa: PLC0415  an extra that takes a while to import

        return SummaryWriter(str(self.folder), purge_step=self._first_rollout_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()
