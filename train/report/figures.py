"""Charts as SVG for a page, in the page's colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from .curves import Panel, draw_panel
from .statistics import NUM_CONFIDENCE_BINS, ConfidenceBin, Rate

# matplotlib knows no style sheet: it draws in colours that stand for those of the page.
_INK, _LINE, _BAR = "#010101", "#010102", "#010103"
_SERIES = ("#020201", "#020202", "#020203", "#020204", "#020205", "#020206")
_PAGE_COLOURS = {_INK: "var(--ink)", _LINE: "var(--line)", _BAR: "var(--bar)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(_SERIES, start=1)
}
NUM_COLOURS = len(_SERIES)
"""Readers beyond so many share colours, and the shapes of marks."""

_MARKERS = "osD^vP"

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.prop_cycle": f"cycler(linestyle=['-', '--']) * cycler(color={list(_SERIES)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": _LINE,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "clipocr",  # Else ids, and so the page, differ each time.
    "text.color": _INK,
    "xtick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.color": _LINE,
    "ytick.labelcolor": _INK,
}


@mpl.rc_context(_STYLE)
def length_figure(rates: Mapping[str, Mapping[int, Rate]]) -> Markup:
    """Draw word accuracy by label length, by reader, over the number of words."""
    figure, upper, lower = _two_panels()
    for i, (letter, by_length) in enumerate(rates.items()):
        # Side by side, so that intervals do not hide one another.
        shift = 0.14 * (i - (len(rates) - 1) / 2)
        _draw_rates(
            upper, [length + shift for length in by_length], list(by_length.values()), i, letter
        )
    first = next(iter(rates.values()))
    lower.bar(list(first), [rate.num_samples for rate in first.values()], color=_BAR)
    lower.set_xlabel("characters of the label")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(rates) > 1:
        upper.legend()
    return _svg(figure, "by-length", "Word accuracy by label length")


@mpl.rc_context(_STYLE)
def reliability_figure(reliabilities: Mapping[str, Sequence[ConfidenceBin]]) -> Markup:
    """Draw accuracy against confidence, by reader, over the number of words."""
    figure, upper, lower = _two_panels()
    upper.plot([0, 100], [0, 100], color=_INK, linestyle="--", linewidth=0.8)
    for i, (letter, bins) in enumerate(reliabilities.items()):
        rates = [some.rate for some in bins]
        confidences = [100 * some.mean_confidence for some in bins]
        _draw_rates(upper, confidences, rates, i, letter)
        width = 100 / NUM_CONFIDENCE_BINS / len(reliabilities)
        lower.bar(
            [100 * some.low + (i + 0.5) * width for some in bins],
            [rate.num_samples for rate in rates],
            width=0.85 * width,
            color=_BAR if len(reliabilities) == 1 else _SERIES[i % NUM_COLOURS],
        )
    lower.set_xlabel("confidence, %")
    if len(reliabilities) > 1:
        upper.legend()
    return _svg(figure, "reliability", "Accuracy by confidence")


@mpl.rc_context(_STYLE)
def curve_figure(panel: Panel, name: str) -> Markup:
    """Draw one panel of a run's curves."""
    figure = Figure(figsize=(4.2, 2.9))
    draw_panel(figure.subplots(), panel)
    return _svg(figure, name, f"Training curves: {panel.title}")


def _two_panels() -> tuple[Figure, Axes, Axes]:
    """Return a figure of accuracies in percent, and below them numbers of words."""
    figure = Figure(figsize=(5.2, 3.8))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.set_ylabel("accuracy, %")
    upper.set_ylim(-3, 103)
    lower.set_ylabel("words")
    lower.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure, upper, lower


def _draw_rates(axis: Axes, at: Sequence[float], rates: Sequence[Rate], i: int, label: str) -> None:
    axis.errorbar(
        at,
        [rate.percent for rate in rates],
        yerr=[
            [rate.percent - rate.interval[0] for rate in rates],
            [rate.interval[1] - rate.percent for rate in rates],
        ],
        color=_SERIES[i % NUM_COLOURS],
        marker=_MARKERS[i % NUM_COLOURS],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2,
        label=label,
    )


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """Return a figure as an element of the page, whose other figures have other names."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"])
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    # The page decides the size; the view box keeps the shape.
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg)
    for stand_in, colour in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))
