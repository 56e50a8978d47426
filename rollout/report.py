"""`espalier report RUN`: a run's metrics as one HTML page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec

from ..errors import ConfigError, DataError
from .batch_metrics import ERROR_CATEGORY_PREFIX, OLDEST_AGE, STALENESS_PREFIX, ZERO_STD_PREFIX, age_name
from .charts import NOTHING_MEASURED, Points, bar_chart, line_chart, number
from .metrics import DROP_PREFIX, FAILED_PREFIX, GROUPS_KEPT
from .timeline import Timeline, decode_timeline
from .timeline_chart import timeline_chart

MAX_METRICS_BYTES: Final = 256 << 20
"""A larger file is not that of a run: a step takes about a kilobyte."""

MAX_TIMELINE_BYTES: Final = 4 << 20
"""Longest line of `requests.jsonl`: a step's requests, of which no more than 20,000 are written down."""

_LENGTHS: Final = "rollout/response_len/"

_TIMES: Final = {
    "whole step": "perf/rollout_time",
    "ending what was left": "perf/abort_time",
    "request, mean": "perf/request/e2e_latency/mean",
    "request, max": "perf/request/e2e_latency/max",
    "waiting for its turn, mean": "perf/request/queue_time/mean",
    "outside of generation, mean": "perf/non_generation_time/mean",
}

_SHARES: Final = {"truncated": "rollout/truncated_ratio", "repetitive": "rollout/repetition_frac"}

_HITS: Final = {
    "to the workers' prefix caches": "rollout/prefix_cache_hit_rate",
    "to the router's tree": "rollout/tree_hit_rate",
}

_SPECULATION: Final = {
    "drafts accepted, share": "rollout/spec_accept_rate",
    "tokens a verification": "rollout/spec_accept_length",
}

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #6a737d; --line: #e3e6ea;
  --series-0: #2563eb; --series-1: #d97706; --series-2: #059669; --series-3: #db2777;
  --series-4: #7c3aed; --series-5: #0891b2; --series-6: #b91c1c; --series-7: #65a30d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171a; --faint: #98a1ab;
  --line: #2c3238; --series-0: #60a5fa; --series-1: #fbbf24; --series-2: #34d399; --series-3: #f472b6;
  --series-4: #a78bfa; --series-5: #22d3ee; --series-6: #f87171; --series-7: #a3e635; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1360px; margin: 0 auto; padding: 24px; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 16px; margin: 0 0 8px; }
.summary, .empty { color: var(--faint); }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr)); gap: 32px; }
svg { width: 100%; height: auto; } svg text { fill: var(--faint); font-size: 12px; }
svg .grid { stroke: var(--line); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 4px 0 0; padding: 0; }
.legend span { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; }
table { border-collapse: collapse; margin-top: 8px; } td { padding: 2px 24px 2px 0; }
td + td { text-align: right; font-variant-numeric: tabular-nums; } details { margin-top: 32px; }
"""


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What to show, and where to write it."""

    run: Path = field(default=Path("rollout-output"))
    """output folder of a rollout, or its metrics.jsonl; `espalier report RUN` means the same"""

    output: Path | None = None
    """the page; report.html beside the metrics where it is not given"""


def run(settings: ReportSettings) -> int:
    """Write the page and say where it is; return the exit status.

    Raises: DataError where the metrics cannot be read; ConfigError where the page cannot be written.
    """
    metrics = settings.run if settings.run.is_file() else settings.run / "metrics.jsonl"
    output = settings.output or metrics.with_name("report.html")
    timeline = read_last_timeline(metrics.with_name("requests.jsonl"))
    page = report_page(settings.run.resolve().name, read_steps(metrics), timeline)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror or error}") from None
    print(f"report: {output}")  # noqa: T201  a command speaks to its user
    return 0


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file, each with an integer `rollout_id`.

    Raises: DataError naming file, line and reason.
    """
    try:
        if path.stat().st_size > MAX_METRICS_BYTES:
            raise DataError(f"{path}: larger than {MAX_METRICS_BYTES} bytes, which no run's metrics are")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    steps: list[dict[str, Any]] = []
    for at, line in enumerate(lines, start=1):
        try:
            step = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {at}: not valid JSON: {error}") from None
        if not isinstance(step, dict) or type(step.get("rollout_id")) is not int:
            raise DataError(f"{path}, line {at}: expected an object with an integer rollout_id")
        steps.append(step)
    if not steps:
        raise DataError(f"{path}: there is no step in it")
    return steps


def read_last_timeline(path: Path) -> Timeline | None:
    """Return when the requests of the last step ran; None where nobody wrote it down.

    Raises: DataError naming the file where it is no such file.
    """
    last = b""
    try:
        with path.open("rb") as lines:
            while line := lines.readline(MAX_TIMELINE_BYTES):
                last = line
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    try:
        return decode_timeline(last) if last else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}, last line: {error}") from None


def report_page(title: str, steps: Sequence[Mapping[str, Any]], timeline: Timeline | None = None) -> str:
    """Return the page of a run: how it went from step to step, and the `timeline` of its last one."""
    names = list(dict.fromkeys(name for step in steps for name in step))
    evaluated = [name for name in names if name.startswith("eval/") and "/" not in name[5:]]
    rewards = {"mean reward": "rollout/reward/mean"}
    rewards |= {name: name for name in evaluated if not name.endswith("-truncated_ratio")}
    lengths = {kind: f"{_LENGTHS}{kind}" for kind in ("mean", "median", "max", "min")}
    fates = {"kept": GROUPS_KEPT} | {
        f"dropped: {name.removeprefix(prefix)}": name
        for prefix in (DROP_PREFIX, FAILED_PREFIX)
        for name in names
        if name.startswith(prefix)
    }
    ages = {
        f"{age} behind" if age < OLDEST_AGE else f"{age} or more behind": f"{STALENESS_PREFIX}{age_name(age)}"
        for age in range(OLDEST_AGE + 1)
    }
    charts = {
        "Reward": line_chart(_series(steps, rewards)),
        "Response length, in tokens": line_chart(_series(steps, lengths)),
        "Groups, kept and dropped by reason": bar_chart(_series(steps, fates)),
        "Sampled tokens a second": line_chart(_series(steps, {"tokens/s": "perf/tokens_per_sec"})),
    }
    more = {
        "Seconds a step, and a request at the worker": line_chart(_series(steps, _TIMES)),
        "Weight versions behind, share of tokens": bar_chart(_series(steps, ages), is_share=True),
        "Shares of samples": line_chart(_series(steps, _SHARES | _named(names, ERROR_CATEGORY_PREFIX))),
        "Shares of prompt tokens that were known": line_chart(_series(steps, _HITS)),
        "Groups with equal rewards, by reward": bar_chart(_series(steps, _named(names, ZERO_STD_PREFIX))),
        "Speculative decoding": line_chart(_series(steps, _SPECULATION)),
        "Requests of the last step": NOTHING_MEASURED if timeline is None else timeline_chart(timeline),
    }
    charts |= {name: chart for name, chart in more.items() if chart != NOTHING_MEASURED}
    sections = "".join(f"<section><h2>{escape(name)}</h2>{chart}</section>" for name, chart in charts.items())
    ids = {step["rollout_id"] for step in steps}
    count = len(ids)
    last = {name: step[name] for step in steps if step["rollout_id"] == max(ids) for name in step}
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="summary">{count} step{"" if count == 1 else "s"}</p>'
        f"<main>{sections}</main>{_table(last)}</body></html>\n"
    )


def _series(steps: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, Points]:
    """Return the metrics by the names to show; those that were never measured are left out."""
    found = {
        shown: [
            (int(step["rollout_id"]), float(step[name]))
            for step in sorted(steps, key=lambda step: int(step["rollout_id"]))
            if isinstance(step.get(name), int | float)
        ]
        for shown, name in names.items()
    }
    return {shown: points for shown, points in found.items() if points}


def _named(names: Sequence[str], prefix: str) -> dict[str, str]:
    """Return the metrics that begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def _table(step: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{number(float(value))}</td></tr>"
        for name, value in sorted(step.items())
        if isinstance(value, int | float)
    )
    return f"<details><summary>All metrics of the last step</summary><table>{rows}</table></details>"
