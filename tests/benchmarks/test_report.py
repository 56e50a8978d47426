"""What the report says of results."""

from pathlib import Path

import pytest

from benchmarks.comparison.report import BEGIN, END, markdown, write_document
from benchmarks.comparison.results import Results, Round, Row, read_results, write_results
from benchmarks.comparison.scenarios import Scenario
from benchmarks.comparison.subjects import PLAIN, SGLANG

SMALL = Scenario(tokens=16, connections=64)


def row(subject: str, *replies_per_s: float, idle_share: float = 0.0, replies: int = 10_000) -> Row:
    rounds = [
        Round(
            replies=replies,
            replies_per_s=rate,
            p50_ms=1.0,
            p99_ms=2.0,
            cpu_s_per_1000=1000 / rate,
            core_share=1 - idle_share,
            idle_share=idle_share,
            failed=0,
        )
        for rate in replies_per_s
    ]
    return Row(subject=subject, scenario=SMALL, rounds=rounds, peak_memory_mib=50.0, reply="byte for byte")


def results(*rows: Row, missing: dict[str, str] | None = None) -> Results:
    return Results(
        day="2026-01-31",
        machine="a machine",
        revision="abc",
        versions={"wrk": "4"},
        missing=missing or {},
        yardstick_us=[60.0, 70.0],
        rows=list(rows),
    )


@pytest.mark.parametrize(("theirs", "verdict"), [(10_000.0, "| reached |"), (10_001.0, "| not reached |")])
def test_goal_is_judged_by_the_ratio_of_the_medians(theirs: float, verdict: str) -> None:
    told = markdown(results(row(PLAIN.name, 1.0, 16_000.0, 99_000.0), row(SGLANG.name, theirs)))
    (line,) = (line for line in told.splitlines() if "1.6 x sglang-router" in line)
    assert verdict in line


def test_goal_whose_subject_was_not_measured_is_not_judged() -> None:
    assert "16 tokens: 1.6 x sglang-router | - | not measured |" in markdown(results(row(PLAIN.name, 1.0)))


def test_missing_subject_is_told_with_the_reason() -> None:
    assert "- smg is missing: no such wheel" in markdown(
        results(row(PLAIN.name, 1.0), missing={"smg": "no such wheel"})
    )


def test_figure_of_a_router_that_had_time_to_spare_is_a_lower_bound() -> None:
    told = markdown(results(row(PLAIN.name, 500.0, idle_share=0.5), row(SGLANG.name, 700.0)))
    assert "| Espalier | ≥ 500 |" in told
    assert "| sglang-router | 700 (0.71 x) |" in told


def test_figure_of_fewer_replies_than_connections_is_not_shown() -> None:
    assert "| Espalier | too few |" in markdown(results(row(PLAIN.name, 500.0, replies=63)))


def test_only_the_generated_part_of_the_document_changes(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_document(results(row(PLAIN.name, 500.0)), document, "plot.svg")
    once = document.read_text()
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    write_document(results(row(PLAIN.name, 500.0)), document, "plot.svg")
    assert document.read_text() == once


def test_document_without_the_marks_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="needs the lines"):
        write_document(results(row(PLAIN.name, 500.0)), document, "plot.svg")


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "results.json"
    written = results(row(PLAIN.name, 500.0))
    write_results(written, file)
    assert read_results(file) == written
