"""Where a run's metrics go beside `metrics.jsonl`: the trackers that people look at."""

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from .config import RolloutConfig
from .tensorboard import TensorBoardWriter
from .wandb_run import WandbWriter


class Tracker(Protocol):
    """Takes the metrics of one step after the other, until it is left."""

    def write(self, rollout_id: int, metrics: Mapping[str, float | None]) -> None:
        """Take a step's metrics. Raises: EspalierError where it cannot."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what was begun with the first step."""
        ...


def trackers_of(config: RolloutConfig, first_rollout_id: int) -> list[Tracker]:
    """Return the trackers that the settings ask for; each does its work with the first step.

    Raises: ConfigError where the library of one is missing.
    """
    trackers: list[Tracker] = []
    if config.use_tensorboard:
        folder = config.output_dir / "tensorboard"
        trackers.append(TensorBoardWriter(folder, first_rollout_id=first_rollout_id))
    if config.use_wandb:
        trackers.append(
            WandbWriter(
                config.output_dir,
                project=config.wandb_project,
                group=config.wandb_group,
                mode=config.wandb_mode,
            )
        )
    return trackers
