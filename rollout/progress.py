"""What a running rollout tells about itself, to whoever listens."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from .sample import Sample


class RolloutObserver(Protocol):
    """Is told of each group as it is decided on. Called on the rollout's event loop: do not block."""

    def on_group_kept(self, samples: list[Sample]) -> None:
        """Hear that a group is in the batch."""
        ...

    def on_group_dropped(self, samples: list[Sample], reason: str) -> None:
        """Hear that a group is not, because of `reason`. `samples` is empty where it raised."""
        ...

    def on_tokens(self, count: int) -> None:
        """Hear that so many more response tokens were sampled."""
        ...


class SilentObserver:
    """Listens to nothing."""

    def on_group_kept(self, samples: list[Sample]) -> None:
        """Do nothing."""

    def on_group_dropped(self, samples: list[Sample], reason: str) -> None:
        """Do nothing."""

    def on_tokens(self, count: int) -> None:
        """Do nothing."""


_observer: ContextVar[RolloutObserver] = ContextVar("espalier_rollout_observer", default=SilentObserver())  # noqa: B039  it has no state


@contextlib.contextmanager
def observing(observer: RolloutObserver) -> Iterator[None]:
    """Let `observer` hear of every rollout that is run in the block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def current_observer() -> RolloutObserver:
    """Return the observer of the block that this runs in."""
    return _observer.get()


_: type[RolloutObserver] = SilentObserver
