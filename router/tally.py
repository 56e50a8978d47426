"""What the router counts as calls go by, for `/metrics`."""

from collections import Counter
from dataclasses import dataclass, field

from .histogram import Histogram
from .ledger import DURATION_BOUNDS_S


@dataclass(slots=True)
class Tally:
    """Plain counters: a call costs a few additions."""

    retries: Counter[str] = field(default_factory=Counter)
    """Attempts after the first, by `RetryReason`."""

    aborts: Counter[str] = field(default_factory=Counter)
    """Generations whose worker was told to end them, by cause."""

    refused: Counter[str] = field(default_factory=Counter)
    """Calls that were not let in, by reason."""

    waiting: int = 0
    """Calls that wait to be let in now."""

    queue_waits: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_S))
    """How long calls waited to be let in, in seconds."""
