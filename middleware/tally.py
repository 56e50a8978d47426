"""What the middleware counts, and says once a reason in the log."""

import logging
from collections import Counter
from collections.abc import Iterable

log = logging.getLogger(__name__)


class Tally:
    """Counters by name. What repeats is said the first time only: it would fill the log."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._said: set[str] = set()

    def add(self, name: str, count: int = 1) -> None:
        """Add to a counter."""
        self._counts[name] += count

    def read(self, names: Iterable[str]) -> dict[str, int]:
        """Return the counters of these names, 0 where nothing was counted."""
        return {name: self._counts[name] for name in names}

    def pass_through(self, reason: str, detail: object, request_id: str) -> None:
        """Count a call that goes its way unrecorded."""
        self.add(f"passed_through_{reason}_total")
        self._say(f"event=not_recorded reason={reason}", detail, request_id)

    def fail(self, detail: object, request_id: str) -> None:
        """Count an answer of a recorded call that could not be recorded."""
        self.add("record_failures_total")
        self._say("event=record_failed", detail, request_id)

    def _say(self, event: str, detail: object, request_id: str) -> None:
        if event not in self._said:
            self._said.add(event)
            log.warning("%s detail=%r request_id=%s note=said_once", event, str(detail), request_id)
