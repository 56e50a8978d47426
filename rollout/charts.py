"""Charts as SVG text: lines and stacked bars over a run's steps. Pure: numbers in, markup out.

Colours are CSS variables (`--series-0` and on), so that the page decides how they look by day and by night.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

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

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 28
_TICKS: Final = 5


def line_chart(series: Mapping[str, Points]) -> str:
    """Return lines by name, each with a dot at every step that tells its value when pointed at."""
    shown = {name: points for name, points in series.items() if points}
    values = [value for points in shown.values() for _, value in points]
    steps = [step for points in shown.values() for step, _ in points]
    if not values:
        return _EMPTY
    x, (low, high) = (min(steps), max(steps)), _bounds(min(values), max(values))
    body = [_axes(x, (low, high))]
    for index, (name, points) in enumerate(shown.items()):
        places = [(_across(step, x), _up(value, (low, high)), step, value) for step, value in points]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up, _, _ in places)
        colour = f"var(--series-{index % COLOURS})"
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="2.5" fill="{colour}">'
            f"<title>{escape(name)}, step {step}: {number(value)}</title></circle>"
            for across, up, step, value in places
        ]
    return _svg(body) + _legend(list(shown))


def bar_chart(series: Mapping[str, Points]) -> str:
    """Return stacked bars; where there are more steps than bars, a bar is the sum of several steps."""
    steps = sorted({step for points in series.values() for step, _ in points})
    if not steps:
        return _EMPTY
    per_bar = math.ceil((steps[-1] - steps[0] + 1) / MAX_BARS)
    bars: dict[int, dict[str, float]] = {}
    for name, points in series.items():
        for step, value in points:
            bar = bars.setdefault((step - steps[0]) // per_bar, {})
            bar[name] = bar.get(name, 0.0) + value
    count = max(bars) + 1
    high = _bounds(0.0, max(sum(bar.values()) for bar in bars.values()))[1]
    x = (steps[0], steps[0] + count * per_bar)
    body = [_axes((steps[0], steps[-1]), (0.0, high), is_centred=True)]
    width = _across(x[0] + per_bar, x) - _across(x[0], x)
    for place, parts in sorted(bars.items()):
        total, first = 0.0, steps[0] + place * per_bar
        when = f"step {first}" if per_bar == 1 else f"steps {first} to {first + per_bar - 1}"
        for index, name in enumerate(series):
            value = parts.get(name, 0.0)
            if value <= 0:
                continue
            top, bottom = _up(total + value, (0.0, high)), _up(total, (0.0, high))
            body.append(
                f'<rect x="{_across(first, x) + width * 0.1:.1f}" y="{top:.1f}" width="{width * 0.8:.1f}" '
                f'height="{bottom - top:.1f}" fill="var(--series-{index % COLOURS})">'
                f"<title>{escape(name)}, {when}: {number(value)}</title></rect>"
            )
            total += value
    return _svg(body) + _legend(list(series))


def number(value: float) -> str:
    """Return `value` as a person reads it: whole, or with four significant digits."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10_000 else f"{value:.4g}"


def _bounds(low: float, high: float) -> tuple[float, float]:
    """Return round numbers around the values, 0 among them where it is near."""
    if low >= 0 and low < high / 2:
        low = 0.0
    spread = high - low or abs(high) or 1.0
    step = _round_step(spread / _TICKS)
    return math.floor(low / step) * step, max(math.ceil(high / step), math.floor(low / step) + 1) * step


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _across(step: float, x: tuple[int, int]) -> float:
    share = (step - x[0]) / (x[1] - x[0]) if x[1] > x[0] else 0.5
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _up(value: float, y: tuple[float, float]) -> float:
    return HEIGHT - _BOTTOM - (value - y[0]) / (y[1] - y[0]) * (HEIGHT - _TOP - _BOTTOM)


def _axes(x: tuple[int, int], y: tuple[float, float], *, is_centred: bool = False) -> str:
    parts = []
    step = _round_step((y[1] - y[0]) / _TICKS)
    for index in range(round((y[1] - y[0]) / step) + 1):
        value = y[0] + index * step
        up = _up(value, y)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{up:.1f}" y2="{up:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{number(round(value, 10))}</text>'
        )
    ends = ((x[0], "start"), (x[1], "end")) if x[1] > x[0] else ((x[0], "middle"),)
    inset = 4 if is_centred else 0
    for shown, anchor in ends:
        across = _across(shown, x) + {"start": inset, "end": -inset, "middle": 0}[anchor]
        parts.append(f'<text x="{across:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">step {shown}</text>')
    return "".join(parts)


def _svg(body: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(body)}</svg>'


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<li><span style="background: var(--series-{index % COLOURS})"></span>{escape(name)}</li>'
        for index, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


_EMPTY: Final = '<p class="empty">Nothing was measured.</p>'
