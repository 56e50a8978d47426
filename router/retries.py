"""When a call is sent to a worker once more, how soon, and how often in all.

*Invariant*: a call is sent again only if nothing of a reply has reached its client, and either the worker
cannot have begun it, or it is one that only samples and its first attempt was aborted by name before.

A retry goes to a worker that this call has not been to, at once; when it has been to all of them, it waits,
longer each time, and the round begins anew, without those that took no connection. All calls share a budget,
so that a fleet in trouble is not asked twice as much as one in health.

Source: a budget that calls pay into, as Finagle has it; the names of the flags are those of SGLang's router.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ..calls import Reply

BUDGET_CAPACITY: Final = 2000.0
"""Retries that may come at once: a worker that dies takes all the calls it holds with it."""

BUDGET_PER_CALL: Final = 0.2
"""Retries that each call adds to the budget: one in five, on the long run."""

BUDGET_PER_S: Final = 10.0
"""Retries that each second adds, so that a quiet router is not left without."""

_QUEUE_FULL: Final = b"queue is full"
"""In SGLang's words for a request that it did not take in: other 503s may have run for a while."""


class RetryReason(StrEnum):
    """Why a call was sent again."""

    CONNECT_FAILED = "connect_failed"
    QUEUE_FULL = "queue_full"
    CONNECTION_STALE = "connection_stale"
    CONNECTION_BROKEN = "connection_broken"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"


def is_queue_full(reply: Reply) -> bool:
    """Tell whether a worker says that it did not begin the call, because too many wait."""
    return reply.status == 503 and isinstance(reply.body, bytes) and _QUEUE_FULL in reply.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before each new round over the workers."""

    initial_s: float = 0.05
    multiplier: float = 1.5
    max_s: float = 30.0
    jitter: float = 0.2
    """Share of the delay that chance adds or takes, so that calls that failed together do not return so."""

    def delay_s(self, round_number: int, chance: Callable[[], float] = random.random) -> float:
        """Return the wait before the round after `round_number`, the first of which is 1.

        `chance` gives numbers from 0 to 1.
        """
        delay_s = min(self.max_s, self.initial_s * self.multiplier ** min(round_number - 1, 64))
        return delay_s * (1 + self.jitter * (2 * chance() - 1))


class RetryBudget:
    """Counts how many retries all calls together may still make."""

    def __init__(
        self,
        *,
        capacity: float = BUDGET_CAPACITY,
        per_call: float = BUDGET_PER_CALL,
        per_s: float = BUDGET_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._per_call = per_call
        self._per_s = per_s
        self._clock = clock
        self._left = capacity
        self._calls = 0
        self._counted_at_s = clock()

    def count_call(self) -> None:
        """Note a call."""
        self._calls += 1

    def take(self) -> bool:
        """Take one retry out of the budget; return False where none is left."""
        now_s = self._clock()
        earned = self._calls * self._per_call + (now_s - self._counted_at_s) * self._per_s
        self._calls, self._counted_at_s = 0, now_s
        self._left = min(self._capacity, self._left + earned)
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often one call may be sent again, how long it waits, and what all calls may spend together."""

    max_retries: int
    backoff: Backoff
    budget: RetryBudget
