"""What is known of a worker, as a pure state machine: `next_health(health, signal)`.

Five facts that do not depend on each other are kept apart, and folded into one `State` to show and one answer
to "may calls go there?". What its connections have shown is the first of them:

    starting ──call or probe ok──▶ healthy ◀──call ok, or probes ok── suspect ──threshold──▶ dead
        └─────────────────────────────┴───────────failure──────────────▲                      │
                                                                       └─────probes ok────────┘

The others are said of it: *paused*, *stale* (it serves older weights than the newest), *unread* (its weights
are not known yet, and have to be), *draining* (removed, and still holding calls). Where several hold, the one
that will keep calls away the longest is shown: draining, dead, stale, paused.

**What counts against a worker.** Connections that it refused or did not take, connections that broke, and
probes that it left unanswered, `failure_threshold` of them in a row. A generation that takes long, the
time-out of one call and a reply with a 5xx say nothing about the next call, and are no signals at all. Each
reply that begins ends the row, so a worker that is too busy to answer a probe but answers its calls never
dies of it.

**How the dead come back.** By `success_threshold` probes answered in a row, and by nothing else: a probe is
only told as answered after the weight version was read, so a worker that was restarted with the weights of
last week is stale before it could be routable. A late reply to a call from before it died is no such proof.
It comes back as suspect; the next calls decide. The same number of answered probes ends a row of failures of
a worker that gets no calls.

**Paused workers.** Being paused never kills: SGLang answers its probes meanwhile, and keeps new calls waiting
without an error until it goes on. It takes no calls while another worker can; where all that could take calls
are paused, as during a weight update, calls go to them and wait there instead of failing (`WorkerPool`).
A worker that is shutting down looks the same from outside, and is treated the same until it refuses.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a worker stands."""

    STARTING = "starting"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    PAUSED = "paused"
    STALE = "stale"
    DRAINING = "draining"


class Signal(StrEnum):
    """What was seen of a worker, or told about it."""

    CALL_OK = "call_ok"
    """The head of a reply came, whatever its status."""

    CONNECT_FAILED = "connect_failed"
    """A connection, a probe's included, was refused or not taken in time."""

    CALL_BROKEN = "call_broken"
    """The connection broke before the reply was complete."""

    PROBE_OK = "probe_ok"
    """It says that it serves, and its weight version has been read and noted."""

    PROBE_PAUSED = "probe_paused"
    """It lives but is paused, and its weight version has been read and noted."""

    PROBE_FAILED = "probe_failed"
    """It took the connection of a probe, but gave no answer in time, or says that it does not serve."""

    PAUSED = "paused"
    """It was paused through the router."""

    RESUMED = "resumed"
    """It was told through the router to go on."""

    FELL_BEHIND = "fell_behind"
    """Others serve newer weights."""

    CAUGHT_UP = "caught_up"
    """It serves the newest weights."""

    ADDED_AGAIN = "added_again"
    """Somebody who should know says that it is there."""

    REMOVED = "removed"
    """It was taken out of the fleet."""


FAILURES: Final = frozenset({Signal.CONNECT_FAILED, Signal.CALL_BROKEN, Signal.PROBE_FAILED})
"""The signals that count against a worker."""

IN_CONTACT: Final = frozenset({State.STARTING, State.HEALTHY, State.SUSPECT})
"""What connections show of a worker that is not dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """How many signals in a row it takes to die, and to come back."""

    failures: int = 3
    successes: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The facts about one worker. `contact` is what its connections have shown: one of the first four states.

    Invariant: only a suspect has `failures`, only a suspect or dead one `successes`.
    """

    contact: State = State.STARTING
    failures: int = 0
    """Failures in a row, while suspect."""
    successes: int = 0
    """Probes answered in a row, while suspect or dead."""
    is_unread: bool = False
    is_paused: bool = False
    is_stale: bool = False
    is_draining: bool = False

    @property
    def state(self) -> State:
        """The one state to show."""
        if self.is_draining:
            return State.DRAINING
        if self.contact is State.DEAD:
            return State.DEAD
        if self.is_stale:
            return State.STALE
        if self.is_unread:
            return State.STARTING
        return State.PAUSED if self.is_paused else self.contact

    @property
    def is_routable(self) -> bool:
        """Whether calls may go there."""
        return self.state in IN_CONTACT and not self.is_unread

    @property
    def keeps_waiting(self) -> bool:
        """Whether calls may go there if no other worker takes any: they wait until it is resumed."""
        return self.state is State.PAUSED


def next_health(health: Health, signal: Signal, thresholds: Thresholds) -> Health:
    """Return a worker's health after `signal`: the same object where nothing changed."""
    if signal is Signal.CALL_OK:
        return _after_reply(health)
    if signal in FAILURES:
        return _after_failure(health, thresholds.failures)
    if signal is Signal.PROBE_OK or signal is Signal.PROBE_PAUSED:
        return _after_probe(health, thresholds.successes, is_paused=signal is Signal.PROBE_PAUSED)
    return _after_news(health, signal, thresholds.successes)


def _after_reply(health: Health) -> Health:
    if health.contact is State.HEALTHY or health.contact is State.DEAD:
        return health
    return replace(health, contact=State.HEALTHY, failures=0, successes=0)


def _after_failure(health: Health, failure_threshold: int) -> Health:
    if health.contact is State.DEAD:
        return replace(health, successes=0) if health.successes else health
    failures = health.failures + 1
    if failures >= failure_threshold:
        return replace(health, contact=State.DEAD, failures=0, successes=0)
    return replace(health, contact=State.SUSPECT, failures=failures, successes=0)


def _after_probe(health: Health, success_threshold: int, *, is_paused: bool) -> Health:
    contact, failures, successes = health.contact, health.failures, health.successes
    if contact is State.STARTING:
        contact = State.HEALTHY
    elif contact is not State.HEALTHY:
        successes += 1
        if successes >= success_threshold:
            contact = State.SUSPECT if contact is State.DEAD else State.HEALTHY
            failures = successes = 0
    after = replace(
        health, contact=contact, failures=failures, successes=successes, is_unread=False, is_paused=is_paused
    )
    return health if after == health else after


def _after_news(health: Health, signal: Signal, success_threshold: int) -> Health:
    after = health
    if signal is Signal.PAUSED or signal is Signal.RESUMED:
        after = replace(health, is_paused=signal is Signal.PAUSED)
    elif signal is Signal.FELL_BEHIND or signal is Signal.CAUGHT_UP:
        after = replace(health, is_stale=signal is Signal.FELL_BEHIND)
    elif signal is Signal.REMOVED:
        after = replace(health, is_draining=True)
    elif health.contact is State.DEAD:  # added again: one answered probe is enough, and tells all anew
        after = replace(health, successes=success_threshold - 1, is_stale=False)
    return health if after == health else after
