"""The report: what was reached, and tables of everything that was measured, as Markdown."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from .results import MAX_FOREIGN_SHARE, Results, Row
from .scenarios import Scenario
from .subjects import NO_ROUTER, PLAIN, RECORDING, SGLANG, SMG, SUBJECTS, VLLM, Subject

BEGIN: Final = "<!-- Written by `make bench`: begin -->"
END: Final = "<!-- Written by `make bench`: end -->"
"""What stands between these two lines of the document is generated."""


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """At least `least` replies/s of `subject`; or, with `over`, that many times what `over` has."""

    subject: Subject
    tokens: int
    least: float
    over: Subject | None = None

    @property
    def scenario(self) -> Scenario:
        """All goals are about 64 connections and whole replies."""
        return Scenario(tokens=self.tokens, connections=64)


GOALS: Final = (
    Goal(subject=PLAIN, tokens=16, least=1.6, over=SGLANG),
    Goal(subject=PLAIN, tokens=16, least=1.5, over=SMG),
    Goal(subject=PLAIN, tokens=16, least=1.0, over=VLLM),
    Goal(subject=PLAIN, tokens=1024, least=1.3, over=SGLANG),
    Goal(subject=RECORDING, tokens=1024, least=3000),
)


def write_document(results: Results, document: Path, plot_name: str) -> None:
    """Write the generated part of `document` anew.

    Raises: ValueError where the document does not say where that is.
    """
    before, begun, rest = document.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"{document} needs the lines {BEGIN!r} and {END!r}")
    alt = "Replies a second of every router, for replies of 16, 1,024 and 16,384 tokens"
    generated = f"{_origin(results)}\n\n![{alt}]({plot_name})\n\n{markdown(results)}"
    document.write_text(f"{before}{BEGIN}\n\n{generated}\n{END}{after}")


def markdown(results: Results) -> str:
    """Return the report, without the plot."""
    blocks = ["### Goals", _table(["goal", "replies/s", "", "by CPU time"], list(_goals(results)))]
    for is_streamed in (False, True):
        scenarios = [each for each in results.scenarios if each.is_streamed == is_streamed]
        if not scenarios:
            continue
        blocks.append("### Streamed replies" if is_streamed else "### Whole replies")
        for title, cell in _MEASURES:
            blocks.append(f"{title}:")
            blocks.append(_matrix(results, scenarios, cell))
    blocks += ["### Notes", "\n".join(f"- {note}" for note in _notes(results))]
    return "\n\n".join(blocks) + "\n"


def _origin(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results.versions.items()))
    rounds = max(len(row.rounds) for row in results.rows)
    low, high = min(results.yardstick_us), max(results.yardstick_us)
    return (
        f"Measured on {results.day}, Espalier {results.revision}. {results.machine}. {versions}."
        f" Rounds: {rounds}. Yardstick: {low:,.0f} to {high:,.0f} µs."
    )


def _goals(results: Results) -> Iterator[list[str]]:
    for goal in GOALS:
        ours = results.row(goal.subject.name, goal.scenario)
        what = f"{goal.subject.name}, {goal.tokens:,} tokens: "
        if goal.over is None:
            what += f"{goal.least:,.0f} replies/s"
            value = ours.replies_per_s if ours is not None else None
            told = f"{value:,.0f}" if value is not None else "-"
            by_cpu = f"{ours.replies_per_cpu_s:,.0f}" if ours and ours.replies_per_cpu_s else "-"
        else:
            what += f"{goal.least:.1f} x {goal.over.name}"
            theirs = results.row(goal.over.name, goal.scenario)
            value = ours.replies_per_s / theirs.replies_per_s if ours and theirs else None
            told = f"{value:.2f} x" if value is not None else "-"
            by_cpu = _cpu_ratio(ours, theirs)
        verdict = "not measured" if value is None else "reached" if value >= goal.least else "not reached"
        yield [what, told, verdict, by_cpu]


def _cpu_ratio(ours: Row | None, theirs: Row | None) -> str:
    if not (ours and theirs and ours.replies_per_cpu_s and theirs.replies_per_cpu_s):
        return "-"
    return f"{ours.replies_per_cpu_s / theirs.replies_per_cpu_s:.2f} x"


def _rate(row: Row, results: Results) -> str:
    bounded = "≥ " if row.is_bounded_by_load else "~ " if row.foreign_share > MAX_FOREIGN_SHARE else ""
    if row.is_too_short:
        return "too few"
    failed = f" ({row.failed} failed)" if row.failed else ""
    told = f"{bounded}{row.replies_per_s:,.0f}{failed}"
    ours = results.row(PLAIN.name, row.scenario)
    if ours is None or ours.is_too_short or row.subject in (PLAIN.name, NO_ROUTER.name):
        return told
    return f"{told} ({ours.replies_per_s / row.replies_per_s:.2f} x)"


def _latency(row: Row, _: Results) -> str:
    return "-" if row.is_too_short else f"{_ms(row.p50_ms)} / {_ms(row.p99_ms)}"


def _cpu(row: Row, _: Results) -> str:
    return "-" if row.cpu_s_per_1000 is None or row.is_too_short else f"{row.cpu_s_per_1000:.3f}"


def _memory(row: Row, _: Results) -> str:
    return "-" if row.peak_memory_mib is None else f"{row.peak_memory_mib:,.0f}"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


_MEASURES: Final[tuple[tuple[str, Callable[[Row, Results], str]], ...]] = (
    ("Replies/s, and in brackets how many times that Espalier without middleware answers", _rate),
    ("Latency in ms, p50 / p99", _latency),
    ("CPU seconds of the router for 1,000 replies", _cpu),
    ("Peak memory of the router in MiB", _memory),
)


def _matrix(results: Results, scenarios: list[Scenario], cell: Callable[[Row, Results], str]) -> str:
    heads = ["tokens, connections", *(f"{each.tokens:,}, {each.connections:,}" for each in scenarios)]
    lines = []
    for subject in SUBJECTS:
        rows = [results.row(subject.name, scenario) for scenario in scenarios]
        if any(rows):
            lines.append([subject.name, *(cell(row, results) if row else "-" for row in rows)])
    return _table(heads, lines)


def _notes(results: Results) -> Iterator[str]:
    yield (
        "“≥”: the router's core was idle for more than a tenth of the time; it waited for the client and the"
        " worker, and could do more."
    )
    if any(row.is_too_short for row in results.rows):
        yield "“too few”: fewer replies than connections came in the time of a measurement."
    if any(row.foreign_share > MAX_FOREIGN_SHARE for row in results.rows):
        yield (
            "“~”: other programs took more than a tenth of the router's core; replies/s and latency are worse"
            " than on a quiet machine. CPU seconds are comparable."
        )
    for name, reason in sorted(results.missing.items()):
        yield f"{name} is missing: {reason}"
    for subject in SUBJECTS:
        anew = [row for row in results.rows if row.subject == subject.name and row.reply != "byte for byte"]
        if anew:
            yield f"{subject.name}: the worker's reply is {anew[0].reply} ({len(anew)} scenarios)."
    for row in results.rows:
        if row.recorded_share is not None and 0 < row.recorded_share < 1:
            yield f"{row.subject}, {row.scenario}: {row.recorded_share:.0%} of the calls were recorded."
    unrecorded = [str(row.scenario) for row in results.rows if row.recorded_share == 0]
    if unrecorded:
        yield f"{RECORDING.name}: nothing is recorded, calls pass through, at {'; '.join(unrecorded)}."


def _table(heads: list[str], lines: list[list[str]]) -> str:
    ruler = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ruler, *lines])
