"""What a running rollout tells about itself, to whoever listens."""

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from .sample import Sample
from .timeline import Timeline

_log = logging.getLogger(__name__)


class RolloutObserver(Protocol):
    """Is told of each group as it is decided on. Called on the rollout's event loop: do not block."""

    def on_group_kept(self, samples: list[Sample]) -> None:
        """Hear that a group is in the batch."""
        ...

    def on_group_dropped(self, samples: list[Sample], reason: str, problem: str | None) -> None:
        """Hear that a group is not, because of `reason`. `samples` is empty where it raised.

        `problem` tells in words what went wrong; None where the dynamic filter rejected it.
        """
        ...

    def on_tokens(self, count: int) -> None:
        """Hear that so many more response tokens were sampled."""
        ...

    def on_timeline(self, timeline: Timeline) -> None:
        """Hear when the requests began and ended that ended since the last call."""
        ...

    def on_notice(self, text: str) -> None:
        """Hear a sentence that a person should read now."""
        ...


class LoggingObserver:
    """Writes what goes wrong to the log, each kind of it once, and is silent otherwise."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def on_group_kept(self, samples: list[Sample]) -> None:
        """Do nothing."""

    def on_group_dropped(self, samples: list[Sample], reason: str, problem: str | None) -> None:  # noqa: ARG002
        """Log the first problem of each reason."""
        if problem is not None and reason not in self._logged:
            self._logged.add(reason)
            _log.warning("event=group_dropped reason=%s problem=%r", reason, problem)

    def on_tokens(self, count: int) -> None:
        """Do nothing."""

    def on_timeline(self, timeline: Timeline) -> None:
        """Do nothing."""

    def on_notice(self, text: str) -> None:
        """Log it."""
        _log.warning("event=rollout_notice text=%r", text)


_observer: ContextVar[RolloutObserver | None] = ContextVar("espalier_rollout_observer", default=None)


@contextlib.contextmanager
def observing(observer: RolloutObserver) -> Iterator[None]:
    """Let `observer` hear of every rollout that is run in the block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def current_observer() -> RolloutObserver:
    """Return the observer of the block that this runs in; outside of any, a new one that logs."""
    return _observer.get() or LoggingObserver()


_: type[RolloutObserver] = LoggingObserver
