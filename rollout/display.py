"""What the person at the terminal sees: progress while a step runs, a table when it is done."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .metrics import GROUPS_KEPT, Metrics, drops_by_reason
from .progress import RolloutObserver
from .sample import Sample
from .timeline import Timeline


class StepDisplay:
    """Shows one step's progress and remembers its groups, so that they can be saved whatever happens.

    On a terminal it is a bar; elsewhere a line for each quarter of the batch, and for dropped groups when
    there are a quarter as many, and each time that their number has doubled. What went wrong is told on
    both, the first time that it does.
    """

    def __init__(
        self, console: Console, title: str, target: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`target` is the number of groups in a batch; `clock` tells seconds."""
        self.kept: list[list[Sample]] = []
        self.dropped: dict[str, int] = {}
        self.timeline: Timeline | None = None
        self._console = console
        self._title = title
        self._target = target
        self._clock = clock
        self._began_s = clock()
        self._tokens = 0
        self._quarters = 0
        self._next_dropped = max(1, target // 4)
        self._told: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("groups kept, {task.fields[counts]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=target, counts=self._counts())

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_group_kept(self, samples: list[Sample]) -> None:
        """Count a group of the batch."""
        self.kept.append(samples)
        self._show()

    def on_group_dropped(self, samples: list[Sample], reason: str, problem: str | None) -> None:  # noqa: ARG002
        """Count a group that is not in the batch."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if problem is not None and reason not in self._told:
            self._told.add(reason)
            self.on_notice(f"a group is dropped ({reason}): {problem}")
        self._show()

    def on_tokens(self, count: int) -> None:
        """Count sampled tokens."""
        self._tokens += count

    def on_timeline(self, timeline: Timeline) -> None:
        """Keep it."""
        self.timeline = timeline

    def on_notice(self, text: str) -> None:
        """Show a sentence above the bar."""
        self._console.print(f"{self._title}: {escape(text)}", highlight=False, soft_wrap=True)

    def _counts(self) -> str:
        dropped = sum(self.dropped.values())
        seconds = self._clock() - self._began_s
        rate = self._tokens / seconds if seconds > 0 else 0.0
        return f"{len(self.kept) + dropped} done, {dropped} dropped, {rate:,.0f} tokens/s"

    def _show(self) -> None:
        self._progress.update(self._task, completed=len(self.kept), counts=self._counts())
        quarters = 4 * len(self.kept) // self._target
        dropped = sum(self.dropped.values())
        is_due = quarters > self._quarters or dropped >= self._next_dropped
        if not self._console.is_terminal and is_due:
            self._quarters = quarters
            while self._next_dropped <= dropped:
                self._next_dropped *= 2
            self._console.print(
                f"{self._title}: {len(self.kept)}/{self._target} groups kept, {self._counts()}",
                highlight=False,
                soft_wrap=True,
            )


def step_table(title: str, metrics: Metrics) -> Table:
    """Return a step's table."""
    dropped = drops_by_reason(metrics)
    by_reason = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    rows = {
        "groups kept": _number(metrics.get(GROUPS_KEPT), ".0f"),
        "groups dropped": by_reason or "0",
        "mean reward": _number(metrics.get("rollout/reward/mean"), ".3f"),
        "response length, mean": _number(metrics.get("rollout/response_len/mean"), ".1f", " tokens"),
        "response length, max": _number(metrics.get("rollout/response_len/max"), ".0f", " tokens"),
        "truncated": _share(metrics.get("rollout/truncated_ratio")),
        "tree hit rate": _share(metrics.get("rollout/tree_hit_rate"), absent="off"),
        "tokens/s": _number(metrics.get("perf/tokens_per_sec"), ",.0f"),
        "time": _number(metrics.get("perf/rollout_time"), ".1f", " s"),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def eval_table(title: str, metrics: Metrics) -> Table:
    """Return the table of an evaluation: every metric that there is, in its order."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in metrics.items():
        table.add_row(escape(name), _number(value, ".4g"))
    return table


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _share(value: float | None, absent: str = "-") -> str:
    return absent if value is None else f"{100 * value:.1f} %"


_: type[RolloutObserver] = StepDisplay
