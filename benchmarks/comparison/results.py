"""What was measured: plain values, kept as JSON, from which the report and the plot are made."""

import statistics
from pathlib import Path
from typing import Final

import msgspec

from .scenarios import Scenario

MAX_IDLE_SHARE: Final = 0.1
"""A subject whose core was idle for longer waited for the client or the worker: it could do more."""

MAX_FOREIGN_SHARE: Final = 0.1
"""Where others took more of the subject's core, its replies/s and latencies are too bad; CPU time is not."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of a subject. The shares are of its core's time: its own, and nobody's."""

    replies: int
    replies_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_1000: float | None
    core_share: float | None
    idle_share: float
    failed: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A subject in a scenario. `reply` says how its reply compares with the worker's."""

    subject: str
    scenario: Scenario
    rounds: list[Round]
    peak_memory_mib: float | None
    reply: str
    recorded_share: float | None = None

    @property
    def replies_per_s(self) -> float:
        """The median of the rounds, as of all that follows."""
        return statistics.median(each.replies_per_s for each in self.rounds)

    @property
    def p50_ms(self) -> float:
        """Half of the replies took no longer."""
        return statistics.median(each.p50_ms for each in self.rounds)

    @property
    def p99_ms(self) -> float:
        """99 of 100 replies took no longer."""
        return statistics.median(each.p99_ms for each in self.rounds)

    @property
    def cpu_s_per_1000(self) -> float | None:
        """CPU time of the router for 1,000 replies; None where there is no router."""
        known = [each.cpu_s_per_1000 for each in self.rounds if each.cpu_s_per_1000 is not None]
        return statistics.median(known) if known else None

    @property
    def replies_per_cpu_s(self) -> float | None:
        """Replies for each second of the router's CPU time: what is left when nobody else limits it."""
        cpu_s = self.cpu_s_per_1000
        return 1000 / cpu_s if cpu_s else None

    @property
    def failed(self) -> int:
        """Calls that failed, in all rounds."""
        return sum(each.failed for each in self.rounds)

    @property
    def is_too_short(self) -> bool:
        """Whether not even one reply a connection came: such figures say nothing but that it is slow."""
        return statistics.median(each.replies for each in self.rounds) < self.scenario.connections

    @property
    def is_bounded_by_load(self) -> bool:
        """Whether the subject had time to spare."""
        has_router = self.cpu_s_per_1000 is not None
        return has_router and statistics.median(each.idle_share for each in self.rounds) > MAX_IDLE_SHARE

    @property
    def foreign_share(self) -> float:
        """The part of the subject's core that others took."""
        shares = [
            1 - each.core_share - each.idle_share for each in self.rounds if each.core_share is not None
        ]
        return statistics.median(shares) if shares else 0.0


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run. `yardstick_us` is the time to decode one 1,024-token reply, taken before each round."""

    day: str
    machine: str
    revision: str
    versions: dict[str, str]
    missing: dict[str, str]
    yardstick_us: list[float]
    rows: list[Row]

    def row(self, subject: str, scenario: Scenario) -> Row | None:
        """Return the row of a subject, None where it was not measured."""
        return next((row for row in self.rows if (row.subject, row.scenario) == (subject, scenario)), None)

    @property
    def scenarios(self) -> list[Scenario]:
        """The scenarios, in the order in which they were measured."""
        return list(dict.fromkeys(row.scenario for row in self.rows))


def read_results(file: Path) -> Results:
    """Read what `write_results` wrote."""
    return msgspec.json.decode(file.read_bytes(), type=Results)


def write_results(results: Results, file: Path) -> None:
    """Write them as JSON that a person can read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
