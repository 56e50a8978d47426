import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from espalier.cli import main
from espalier.errors import ConfigError, DataError
from espalier.rollout import RolloutConfig
from espalier.rollout.charts import MAX_BARS, MAX_DOTS, bar_chart, line_chart, number
from espalier.rollout.command import run as roll_out
from espalier.rollout.report import ReportSettings, read_last_timeline, read_steps, report_page, run
from espalier.rollout.timeline import Timeline

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced; keeps what is said, what is pointed at, and all attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.hints: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.hints if self.open and self.open[-1] == "title" else self.words).append(data)


def step(rollout_id: int, **metrics: Any) -> dict[str, Any]:
    return {
        "rollout_id": rollout_id,
        "rollout/reward/mean": 0.5,
        "rollout/response_len/mean": 100.0,
        "rollout/groups_kept": 4.0,
        "perf/tokens_per_sec": 2500.0,
        **{name.replace("__", "/"): value for name, value in metrics.items()},
    }


def heights(svg: str) -> list[float]:
    root = ElementTree.fromstring(svg.partition("</svg>")[0] + "</svg>")
    return [float(rect.attrib["height"]) for rect in root.iter("rect")]


def test_the_page_shows_every_measure_at_every_step() -> None:
    dropped = {"rollout/dynamic_filter/drop_zero_std_1.0": 3, "rollout/failed_group/refused": 2}
    page = Page(report_page("first", [step(0), {**step(1), **dropped, "eval/gsm": 0.25}]))
    assert {"Reward", "Response length, in tokens", "Sampled tokens a second", "2 steps"} <= set(page.words)
    assert {
        "mean reward, step 0: 0.5",
        "eval/gsm, step 1: 0.25",
        "mean, step 1: 100",
        "kept, step 0: 4",
        "dropped: zero_std_1.0, step 1: 3",
        "dropped: refused, step 1: 2",
        "tokens/s, step 1: 2,500",
    } <= set(page.hints)


def test_the_table_has_all_lines_of_the_last_step() -> None:
    page = Page(report_page("first", [step(1), {"rollout_id": 1, "eval/gsm": 0.25}, {**step(0), "old": 1}]))
    assert {"rollout/reward/mean", "eval/gsm"} <= set(page.words)
    assert "old" not in page.words


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing() -> None:
    text = report_page("first", [step(0), step(1)])
    page = Page(text)
    assert {name for name, _ in page.attributes} & {"src", "href", "srcset", "onload", "onclick"} == set()
    assert not re.search(r"<script|@import|url\(|https?://", text)


def test_names_from_the_file_are_text_not_markup() -> None:
    reason = "rollout/dynamic_filter/drop_<script>alert(1)</script>"
    text = report_page("<b>run</b>", [{**step(0), reason: 1}])
    assert "<script" not in text
    assert "<b>" not in text
    Page(text)


def test_what_was_never_measured_is_said_so() -> None:
    page = Page(report_page("empty", [{"rollout_id": 0, "rollout/reward/mean": None}]))
    assert page.words.count("Nothing was measured.") == 4


def test_staleness_and_the_shares_of_samples_are_drawn_where_they_were_measured() -> None:
    measured = {
        "rollout/staleness/tokens_0_behind": 0.75,
        "rollout/staleness/tokens_7_or_more_behind": 0.25,
        "rollout/error_cat/format": 0.5,
        "rollout/zero_std/count_1.0": 3.0,
        "perf/request/e2e_latency/mean": 12.5,
    }
    page = Page(report_page("first", [{**step(0), **measured}], Timeline(requests=[])))
    assert {
        "0 behind, step 0: 0.75",
        "7 or more behind, step 0: 0.25",
        "format, step 0: 0.5",
        "1.0, step 0: 3",
        "request, mean, step 0: 12.5",
    } <= set(page.hints)


def test_shares_stay_shares_where_steps_share_a_bar() -> None:
    chart = bar_chart({"old": [(number, 0.25) for number in range(1000)]}, is_share=True)
    assert set(re.findall(r": ([\d.]+)</title>", chart)) == {"0.25"}


def test_a_page_of_many_steps_stays_small() -> None:
    ids = range(20_000)
    chart = line_chart({"x": [(number, float(number % 7)) for number in ids]})
    assert len(re.findall("<circle", chart)) <= MAX_DOTS + 1
    assert f"step {ids[-1]}: " in chart
    assert len(chart) < 100_000


def test_a_stack_is_as_high_as_its_parts() -> None:
    svg = bar_chart({"kept": [(0, 4.0), (1, 4.0)], "dropped": [(0, 4.0)]})
    kept, dropped, alone = heights(svg)
    assert kept == dropped == alone > 0


def test_many_steps_share_bars_and_lose_nothing() -> None:
    svg = bar_chart({"kept": [(number, 1.0) for number in range(1000)]})
    assert len(heights(svg)) <= MAX_BARS
    hints = re.findall(r"steps (\d+) to (\d+): (\d+)</title>", svg)
    assert sum(int(count) for _, _, count in hints) == 1000


@pytest.mark.parametrize(
    "values", [[0.0], [1.0, 1.0], [-1.0, 1.0], [1e-9, 2e-9], [1e12, 2e12], [-5.0], [0.0, 1e300]]
)
def test_lines_stay_within_the_drawing(values: list[float]) -> None:
    svg = line_chart({"x": list(enumerate(values))})
    ups = [float(up) for up in re.findall(r'cy="([^"]+)"', svg)]
    assert len(ups) == len(values)
    assert all(0 <= up <= 240 for up in ups)


@pytest.mark.parametrize(
    ("value", "shown"), [(3.0, "3"), (0.12345, "0.1235"), (12345.6, "12,346"), (1234567.0, "1,234,567")]
)
def test_numbers_are_shown_as_people_read_them(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no step"),
        (b'{"rollout_id": 0}\n{', "line 2: not valid JSON"),
        (b"[]", "line 1: expected an object"),
        (b'{"rollout_id": true}', "line 1: expected an object"),
    ],
)
def test_metrics_that_cannot_be_read_are_told_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name}.*{message}"):
        read_steps(path)


def test_a_timeline_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    assert read_last_timeline(path) is None
    path.write_bytes(b'{"rollout_id": 0, "requests": 3}\n')
    with pytest.raises(DataError, match=r"requests\.jsonl, last line"):
        read_last_timeline(path)


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step(0)))
    with pytest.raises(ConfigError, match="--output"):
        run(ReportSettings(run=tmp_path, output=tmp_path / "none" / "page.html"))


def test_the_command_reports_on_a_run(
    make_config: Callable[..., RolloutConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(num_rollout=2)
    assert roll_out(config) == 0
    assert main(["report", str(config.output_dir)]) == 0
    page = config.output_dir / "report.html"
    assert f"report: {page}" in capsys.readouterr().out
    assert "Requests of the last step" in page.read_text(encoding="utf-8")
    assert "tokens/s, step 1: " in "".join(Page(page.read_text(encoding="utf-8")).hints)
    assert main(["report", str(config.output_dir / "nowhere")]) == 2
