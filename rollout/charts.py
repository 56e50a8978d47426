"""Charts as SVG text: lines and stacked bars over a run's steps. Pure: numbers in, markup out.

Colours are CSS variables (`--series-0` and on), so that the page decides how they look by day and by night.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final, TypeVar

_T = TypeVar("_T")

Points = Sequence[tuple[int, float]]
"""Step and value, by ascending step."""

WIDTH: Final = 640
"""Units of the drawing; the page scales it."""

HEIGHT: Final = 240
"""As `WIDTH`."""

COLOURS: Final = 8
"""Series that have a colour of their own; further ones begin anew."""

MAX_BARS: Final = 120
"""Bars in a chart; where a run has more steps, neighbours share one."""

MAX_DOTS: Final = 300
"""Dots on a line; where it has more steps, only every so many-th has one. The last one always has."""

MAX_POINTS: Final = 2_000
"""Corners of a line, as `MAX_DOTS`: more than a screen has columns."""

LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
"""Margins of the drawing, for the axes."""

_TICKS: Final = 5


def line_chart(series: Mapping[str, Points]) -> str:
    """Return lines by name, each with dots that tell a step's value when pointed at."""
    shown = {name: points for name, points in series.items() if points}
    values = [value for points in shown.values() for _, value in points]
    steps = [step for points in shown.values() for step, _ in points]
    if not values:
        return NOTHING_MEASURED
    x, (low, high) = (min(steps), max(steps)), bounds(min(values), max(values))
    body = [_axes(x, (low, high))]
    for index, (name, points) in enumerate(shown.items()):
        places = [(across(step, x), up(value, (low, high)), step, value) for step, value in points]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top, _, _ in _thinned(places, MAX_POINTS))
        radius = 2.5 if len(places) <= MAX_DOTS // 2 else 1.5
        colour = f"var(--series-{index % COLOURS})"
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{radius}" fill="{colour}">'
            f"<title>{escape(name)}, step {step}: {number(value)}</title></circle>"
            for left, top, step, value in _thinned(places, MAX_DOTS)
        ]
    return as_svg(body) + as_legend(_coloured(shown))


def bar_chart(series: Mapping[str, Points], *, is_share: bool = False) -> str:
    """Return stacked bars; where there are more steps than bars, a bar is the sum of several steps.

    Shares of a whole (`is_share`) are not summed: such a bar is the mean of its steps.
    """
    steps = sorted({step for points in series.values() for step, _ in points})
    if not steps:
        return NOTHING_MEASURED
    per_bar = math.ceil((steps[-1] - steps[0] + 1) / MAX_BARS)
    bars: dict[int, dict[str, float]] = {}
    for name, points in series.items():
        for step, value in points:
            bar = bars.setdefault((step - steps[0]) // per_bar, {})
            bar[name] = bar.get(name, 0.0) + value
    if is_share:
        steps_in = Counter((step - steps[0]) // per_bar for step in steps)
        bars = {
            place: {name: value / steps_in[place] for name, value in bar.items()}
            for place, bar in bars.items()
        }
    count = max(bars) + 1
    high = 1.0 if is_share else bounds(0.0, max(sum(bar.values()) for bar in bars.values()))[1]
    x = (steps[0], steps[0] + count * per_bar)
    body = [_axes((steps[0], steps[-1]), (0.0, high), is_centred=True)]
    width = across(x[0] + per_bar, x) - across(x[0], x)
    for place, parts in sorted(bars.items()):
        total, first = 0.0, steps[0] + place * per_bar
        when = f"step {first}" if per_bar == 1 else f"steps {first} to {first + per_bar - 1}"
        for index, name in enumerate(series):
            value = parts.get(name, 0.0)
            if value <= 0:
                continue
            top, bottom = up(total + value, (0.0, high)), up(total, (0.0, high))
            body.append(
                f'<rect x="{across(first, x) + width * 0.1:.1f}" y="{top:.1f}" width="{width * 0.8:.1f}" '
                f'height="{bottom - top:.1f}" fill="var(--series-{index % COLOURS})">'
                f"<title>{escape(name)}, {when}: {number(value)}</title></rect>"
            )
            total += value
    return as_svg(body) + as_legend(_coloured(series))


def number(value: float) -> str:
    """Return `value` as a person reads it: whole, or with four significant digits."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10_000 else f"{value:.4g}"


def bounds(low: float, high: float) -> tuple[float, float]:
    """Return round numbers around the values, 0 among them where it is near."""
    if low >= 0 and low < high / 2:
        low = 0.0
    spread = high - low or abs(high) or 1.0
    step = _round_step(spread / _TICKS)
    return math.floor(low / step) * step, max(math.ceil(high / step), math.floor(low / step) + 1) * step


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def across(step: float, x: tuple[float, float]) -> float:
    """Return where `step` is from left to right; `x` are the values at both ends."""
    share = (step - x[0]) / (x[1] - x[0]) if x[1] > x[0] else 0.5
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def up(value: float, y: tuple[float, float]) -> float:
    """Return where `value` is from the top down; `y` are the values at the bottom and the top."""
    return HEIGHT - BOTTOM - (value - y[0]) / (y[1] - y[0]) * (HEIGHT - TOP - BOTTOM)


def _axes(x: tuple[int, int], y: tuple[float, float], *, is_centred: bool = False) -> str:
    parts = [value_axis(y)]
    ends = ((x[0], "start"), (x[1], "end")) if x[1] > x[0] else ((x[0], "middle"),)
    inset = 4 if is_centred else 0
    for shown, anchor in ends:
        left = across(shown, x) + {"start": inset, "end": -inset, "middle": 0}[anchor]
        parts.append(f'<text x="{left:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">step {shown}</text>')
    return "".join(parts)


def value_axis(y: tuple[float, float]) -> str:
    """Return lines across the drawing at round values, each with its number."""
    parts = []
    step = _round_step((y[1] - y[0]) / _TICKS)
    for index in range(round((y[1] - y[0]) / step) + 1):
        value = y[0] + index * step
        top = up(value, y)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top:.1f}" y2="{top:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{top + 4:.1f}" text-anchor="end">{number(round(value, 10))}</text>'
        )
    return "".join(parts)


def as_svg(body: Sequence[str]) -> str:
    """Return the drawing that consists of `body`."""
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(body)}</svg>'


def as_legend(colours: Mapping[str, str]) -> str:
    """Return a list of names, each with its colour."""
    items = "".join(
        f'<li><span style="background: {colour}"></span>{escape(name)}</li>'
        for name, colour in colours.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _coloured(names: Iterable[str]) -> dict[str, str]:
    return {name: f"var(--series-{index % COLOURS})" for index, name in enumerate(names)}


def _thinned(points: Sequence[_T], limit: int) -> Sequence[_T]:
    """Return at most `limit` of the points, evenly spread, and the last one."""
    stride = math.ceil(len(points) / limit)
    last = points[-1:] if (len(points) - 1) % stride else []
    return [*points[::stride], *last]


NOTHING_MEASURED: Final = '<p class="empty">Nothing was measured.</p>'
"""What stands in place of a chart without values."""
