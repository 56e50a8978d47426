"""The plot of the report, drawn from results alone: needs matplotlib, which the router's environment lacks.

python -m benchmarks.comparison.plot benchmarks/results.json docs/benchmarks.svg
"""

import sys
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from .results import Results, Row, read_results
from .scenarios import CONNECTIONS, TOKENS, Scenario

STYLE: Final = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
    "axes.spines.left": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "espalier",
}
"""Text is outlines: it looks the same everywhere. The fixed salt makes equal files of equal results."""

OURS: Final = "#2f6f4f"
OURS_RECORDING: Final = "#7fb69a"
PEER: Final = "#b9bec5"
LIMIT: Final = "#e4e6ea"
INK: Final = "#30343a"

COLOURS: Final = {
    "Espalier": OURS,
    "Espalier, recording": OURS_RECORDING,
    "sglang-router": PEER,
    "smg": PEER,
    "vllm-router": PEER,
    "nginx": LIMIT,
}
"""The subjects that are drawn, from the top."""

FEW, MANY = CONNECTIONS


def draw(results: Results, file: Path) -> None:
    """Draw replies/s: a row of panels for whole replies and one for streams, a panel for each length."""
    ways = sorted({scenario.is_streamed for scenario in results.scenarios})
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            len(ways), len(TOKENS), figsize=(10.5, 2.75 * len(ways) + 0.6), squeeze=False, sharey=True
        )
        for line, is_streamed in zip(panels, ways, strict=True):
            for panel, tokens in zip(line, TOKENS, strict=True):
                _draw_panel(panel, results, tokens, is_streamed=is_streamed)
        figure.text(
            0.01,
            0.985,
            "Replies a second, one core",
            fontsize=13,
            fontweight="bold",
            color=INK,
            va="top",
        )
        figure.text(
            0.01,
            0.985 - 0.27 / figure.get_figheight(),
            f"bar and number: {FEW:,} connections; dot: {MANY:,} connections",
            color="#6a7079",
            va="top",
        )
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.55 / figure.get_figheight()), h_pad=2.0, w_pad=1.5)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)


def _draw_panel(panel: Axes, results: Results, tokens: int, *, is_streamed: bool) -> None:
    names = list(COLOURS)
    rows = {
        connections: [
            results.row(name, Scenario(tokens=tokens, connections=connections, is_streamed=is_streamed))
            for name in names
        ]
        for connections in CONNECTIONS
    }
    drawn = [_rate(row) for row in rows[FEW]]
    dots = [_rate(row) for row in rows[MANY]]
    widest = max([*drawn, *dots, 1.0])
    places = range(len(names))
    panel.barh(places, drawn, color=list(COLOURS.values()), height=0.72)
    panel.scatter(
        [rate for rate in dots if rate],
        [place for place, rate in zip(places, dots, strict=True) if rate],
        s=26,
        color=INK,
        edgecolors="white",
        linewidths=0.9,
        zorder=3,
    )
    for place, rate, dot in zip(places, drawn, dots, strict=True):
        is_covered = rate <= dot < rate + widest * 0.22
        start = (dot if is_covered else rate) + widest * 0.025
        is_ours = names[place].startswith("Espalier")
        panel.text(
            start,
            place,
            f"{rate:,.0f}" if rate else "not measured",
            va="center",
            color=INK,
            fontweight="bold" if is_ours else "normal",
        )
    panel.set_xlim(0, widest * 1.24)
    panel.set_yticks(list(places), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(length=0, labelcolor=INK)
    panel.set_xticks([])
    panel.axvline(0, color="#9aa0a8", linewidth=0.8)
    panel.set_title(
        f"{tokens:,} tokens, {'streamed, a CPU second' if is_streamed else 'whole'}",
        loc="left",
        fontsize=10,
        color=INK,
    )


def _rate(row: Row | None) -> float:
    """Return what is drawn: streams are limited by the client and the worker, so CPU time tells more."""
    if row is None or row.is_too_short:
        return 0.0
    return (row.replies_per_cpu_s or 0.0) if row.scenario.is_streamed else row.replies_per_s


if __name__ == "__main__":
    draw(read_results(Path(sys.argv[1])), Path(sys.argv[2]))
