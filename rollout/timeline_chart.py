"""A step's requests over time, as SVG text: a row each, or how many ran where there are many. Pure."""

from collections.abc import Sequence
from typing import Final

from .charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    NOTHING_MEASURED,
    RIGHT,
    TOP,
    WIDTH,
    across,
    as_legend,
    as_svg,
    bounds,
    number,
    up,
    value_axis,
)
from .sample import Status
from .timeline import RequestSpan, Timeline

MAX_ROWS: Final = 120
"""Requests with a row of their own; with more of them rows would be thinner than two pixels."""

BINS: Final = 160
"""Moments at which the running requests are counted where there are more."""

_COLOURS: Final = {
    Status.COMPLETED: "var(--series-0)",
    Status.TRUNCATED: "var(--series-1)",
    Status.ABORTED: "var(--series-4)",
    Status.FAILED: "var(--series-6)",
}
_ABORT: Final = "the batch was complete"
_TICKS: Final = 6


def timeline_chart(timeline: Timeline) -> str:
    """Return the chart; a dashed line marks the moment when what still ran was ended."""
    spans = sorted(timeline.requests, key=lambda span: (span.start_s, span.end_s))
    end_s = max([span.end_s for span in spans] + [timeline.abort_s or 0.0], default=0.0)
    if not spans:
        return NOTHING_MEASURED
    x = (0.0, end_s or 1.0)
    statuses = [status for status in _COLOURS if any(span.status is status for span in spans)]
    drawn = _rows(spans, x) if len(spans) <= MAX_ROWS else _density(spans, statuses, x)
    legend = {status.value: _COLOURS[status] for status in statuses}
    if any(span.first_token_s is not None for span in spans) and len(spans) <= MAX_ROWS:
        legend["before the first token"] = "var(--faint)"
    if timeline.abort_s is not None:
        drawn.append(_abort_line(across(timeline.abort_s, x)))
        legend[f"dashed: {_ABORT}"] = "var(--ink)"
    left_out = f"; {number(timeline.left_out)} more are not shown" if timeline.left_out else ""
    caption = f'<p class="summary">{number(len(spans))} requests, {number(x[1])} s{left_out}</p>'
    return caption + as_svg([*_time_axis(x), *drawn]) + as_legend(legend)


def _rows(spans: Sequence[RequestSpan], x: tuple[float, float]) -> list[str]:
    height = (HEIGHT - TOP - BOTTOM) / len(spans)
    thick = min(height * 0.8, 12.0)
    parts = []
    for row, span in enumerate(spans):
        top = TOP + row * height + (height - thick) / 2
        y = (top, top + thick)
        left, right = across(span.start_s, x), across(span.end_s, x)
        first = left if span.first_token_s is None else across(span.first_token_s, x)
        told = (
            f"{span.status.value}, {number(span.tokens)} tokens, "
            f"{number(span.start_s)} to {number(span.end_s)} s"
        )
        if span.first_token_s is not None:
            told += f", first token at {number(span.first_token_s)} s"
            parts.append(_bar((left, first), y, "var(--faint)", told))
        parts.append(_bar((first, max(right, first + 1.0)), y, _COLOURS[span.status], told))
    return parts


def _density(spans: Sequence[RequestSpan], statuses: Sequence[Status], x: tuple[float, float]) -> list[str]:
    """Return how many requests ran at each moment, stacked by what became of them."""
    counts = {status: _running([span for span in spans if span.status is status], x) for status in statuses}
    totals = [sum(each[at] for each in counts.values()) for at in range(BINS)]
    y = bounds(0.0, float(max([*totals, 1])))
    width = (WIDTH - LEFT - RIGHT) / BINS
    parts = [value_axis(y)]
    below = [0] * BINS
    for status in statuses:
        above = [low + count for low, count in zip(below, counts[status], strict=True)]
        edge = [(LEFT + (at + side) * width, up(above[at], y)) for at in range(BINS) for side in (0, 1)]
        edge += [
            (LEFT + (at + side) * width, up(below[at], y)) for at in reversed(range(BINS)) for side in (1, 0)
        ]
        points = " ".join(f"{left:.1f},{top:.1f}" for left, top in edge)
        total = sum(span.status is status for span in spans)
        parts.append(
            f'<polygon points="{points}" fill="{_COLOURS[status]}">'
            f"<title>{status.value}: {number(total)} requests, at most {number(max(counts[status]))} "
            "at a time</title></polygon>"
        )
        below = above
    return parts


def _running(spans: Sequence[RequestSpan], x: tuple[float, float]) -> list[int]:
    """Return in how many of `spans` some part of each bin lies."""
    changes = [0] * (BINS + 1)
    for span in spans:
        first, last = (min(int(moment / x[1] * BINS), BINS - 1) for moment in (span.start_s, span.end_s))
        changes[first] += 1
        changes[last + 1] -= 1
    counts, running = [], 0
    for change in changes[:-1]:
        running += change
        counts.append(running)
    return counts


def _bar(x: tuple[float, float], y: tuple[float, float], colour: str, told: str) -> str:
    (left, right), (top, bottom) = x, y
    return (
        f'<rect x="{left:.1f}" y="{top:.2f}" width="{right - left:.1f}" height="{bottom - top:.2f}" '
        f'fill="{colour}"><title>{told}</title></rect>'
    )


def _abort_line(at: float) -> str:
    return (
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="var(--ink)" '
        f'stroke-width="1.5" stroke-dasharray="5 4"><title>{_ABORT}</title></line>'
    )


def _time_axis(x: tuple[float, float]) -> list[str]:
    parts = []
    for tick in range(_TICKS):
        moment_s = x[1] * tick / (_TICKS - 1)
        at = across(moment_s, x)
        anchor = {0: "start", _TICKS - 1: "end"}.get(tick, "middle")
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{number(moment_s)} s</text>'
        )
    return parts
