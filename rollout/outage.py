"""Waiting for a router that is gone, or has no worker: aloud, and not for ever."""

import time
from collections.abc import Callable
from typing import Final

from .problems import RouterUnavailable

REMINDER_S: Final = 10.0
"""Time between sentences while an outage lasts."""


class Outage:
    """One thing that every call needs, and since when it has been missing.

    A call that misses it `note`s so and tries again later; whichever call finds it there `end`s the outage.
    """

    def __init__(
        self,
        missing: str,
        back: str,
        *,
        patience_s: float,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Clauses for a person, whom `tell` reaches: "the router is unreachable", "the router is back"."""
        self._missing = missing
        self._back = back
        self._patience_s = patience_s
        self._tell = tell
        self._clock = clock
        self._began_s: float | None = None
        self._told_s = 0.0

    def note(self, problem: str) -> None:
        """Note that it is missing; `problem` is how that showed.

        Raises: RouterUnavailable once it has been missing for `patience_s`.
        """
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = self._told_s = now_s
            self._tell(f"{self._missing}: {problem}; waiting, {self._patience_s:g} s at most")
            return
        lasted_s = now_s - self._began_s
        if lasted_s >= self._patience_s:
            raise RouterUnavailable(
                f"{self._missing}, for {lasted_s:.0f} s now: {problem}. "
                "--router-patience-s sets how long is waited"
            )
        if now_s - self._told_s >= REMINDER_S:
            self._told_s = now_s
            self._tell(f"{self._missing}, for {lasted_s:.0f} s now: {problem}")

    def end(self) -> None:
        """Note that it is there."""
        if self._began_s is not None:
            self._tell(f"{self._back} after {self._clock() - self._began_s:.0f} s")
            self._began_s = None


class Outages:
    """The two things that a rollout cannot do without: a `router` that answers, and `workers` behind it."""

    def __init__(
        self, *, patience_s: float, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Bear each of them for `patience_s`."""
        self.router = Outage(
            "the router is unreachable", "the router is back", patience_s=patience_s, tell=tell, clock=clock
        )
        self.workers = Outage(
            "the router has no worker to send a call to",
            "there are workers again",
            patience_s=patience_s,
            tell=tell,
            clock=clock,
        )
