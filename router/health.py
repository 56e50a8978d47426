"""What is known of a worker's health, as a pure state machine.

    starting ──call ok──▶ healthy ◀──call ok── suspect ──failures reach the threshold──▶ dead
        └──connect failed──▶ suspect                                                       │
                                ▲───────────────────── probe ok ──────────────────────────┘

Only a connection that was not taken counts against a worker: a generation that takes long, a timeout of one
call or a reply with a 5xx says nothing about the next call. Dead workers are probed and revive as suspects,
which are routable: the next call decides.
"""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a worker stands."""

    STARTING = "starting"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"


class Signal(StrEnum):
    """What was seen of a worker."""

    CALL_OK = "call_ok"
    CONNECT_FAILED = "connect_failed"
    PROBE_OK = "probe_ok"
    PAUSED = "paused"
    RESUMED = "resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A worker's state and the connections it has refused in a row."""

    state: State = State.STARTING
    failures: int = 0

    @property
    def is_routable(self) -> bool:
        """Whether calls may go there."""
        return self.state is not State.DEAD


def next_health(health: Health, signal: Signal, *, failure_threshold: int) -> Health:
    """Return a worker's health after `signal`; `failure_threshold` refused connections in a row kill it."""
    if signal in (Signal.PAUSED, Signal.RESUMED):
        return health
    if signal is Signal.CALL_OK:
        return health if health.state is State.HEALTHY else Health(state=State.HEALTHY)
    if signal is Signal.PROBE_OK:
        return Health(state=State.SUSPECT) if health.state is State.DEAD else health
    failures = health.failures + 1
    state = State.DEAD if failures >= failure_threshold else State.SUSPECT
    return Health(state=state, failures=failures)
