"""Metrics for Weights & Biases, beside `metrics.jsonl`, which holds the same."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ..errors import ConfigError, EspalierError

if TYPE_CHECKING:
    import wandb

MODES: Final = ("offline", "online")
"""Offline, a run is a folder that `wandb sync` sends later; online it goes out as it is written."""


class WandbWriter:
    """Writes steps to a W&B run below `folder`, which is begun with the first one."""

    def __init__(
        self, folder: Path, *, project: str, group: str | None = None, mode: str = "offline"
    ) -> None:
        """Check the mode, and that the library is there, without importing it.

        Raises: ConfigError that tells what is known, or how to get the library.
        """
        if mode not in MODES:
            raise ConfigError(f"--wandb-mode {mode}: expected {' or '.join(MODES)}")
        if find_spec("wandb") is None:
            raise ConfigError("--use-wandb needs wandb: pip install 'espalier[wandb]'")
        self._folder = folder
        self._project = project
        self._group = group
        self._mode = mode
        self._run: wandb.Run | None = None

    def write(self, rollout_id: int, metrics: Mapping[str, float | None]) -> None:
        """Log a step's metrics; what was not measured is left out.

        Raises: EspalierError where the run cannot be begun or written.
        """
        import wandb  # noqa: PLC0415  an extra that takes a while to import

        measured = {name: value for name, value in metrics.items() if value is not None}
        try:
            self._run = self._run or self._begun()
            self._run.log(measured, step=rollout_id)
        except (wandb.Error, OSError) as error:
            raise EspalierError(f"the W&B run in {self._folder} cannot be written: {error}") from error

    def _begun(self) -> "wandb.Run":
        import wandb  # noqa: PLC0415  see above

        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
        )
        return wandb.init(
            dir=self._folder,
            project=self._project,
            group=self._group,
            mode="offline" if self._mode == "offline" else "online",
            settings=settings,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)
