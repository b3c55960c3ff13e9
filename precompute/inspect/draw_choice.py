"""`clipocr cache info --plot`: what each codec takes and keeps of each tap, and what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...shared.cache.codecs.choice import CodecChoice, Fidelity
from ...shared.cache.reader import FeatureCache
from ...shared.errors import CacheMissingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito: the colour-blind tell them apart."""
_MARKERS = {"klt": "o", "int4": "^", "int8": "D", "fp16": "s"}
_LEAST = 1e-9
"""What is lost is rounded to this; a logarithm needs something."""

_Loss = Callable[[Fidelity], float]


def draw_choice(place: str | Path, out: Path) -> Path:
    """Draw the curves by which the codecs of a cache were chosen.

    Raises:
        CacheMissingError: the cache has none: its codec was named.
        CacheError: there is no cache, or its records are damaged.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    cache = FeatureCache.open(place)
    choices = cache.manifest.choices
    if not choices:
        raise CacheMissingError(
            f"{place} has no curve to plot: its codec, {cache.spec.codec}, was named, not chosen. "
            "Build one with: clipocr cache build --codec auto ..."
        )
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    cosine, gram = figure.subplots(1, 2)
    _draw_panel(cosine, choices, "-", lambda f: 1 - f.cosine_p50)
    _draw_panel(cosine, choices, "--", lambda f: 1 - f.cosine_p01)
    _draw_panel(gram, choices, "-", lambda f: f.gram_l1)
    cosine.set_title("Angle of a token")
    cosine.set_ylabel("1 - centred cosine: median (solid), 1st percentile (dashed)")
    gram.set_title("Angles between tokens")
    gram.set_ylabel("Gram error: mean absolute difference of cosines")
    for axes in (cosine, gram):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("bytes per row and tap")
        axes.grid(which="major", alpha=0.3)
    target = next(iter(choices.values())).target
    _draw_target(cosine, 1 - target.cosine_p50, "-", f"median ≥ {target.cosine_p50:.6g}")
    _draw_target(cosine, 1 - target.cosine_p01, "--", f"1st percentile ≥ {target.cosine_p01:.6g}")
    _draw_target(gram, target.gram_l1, "-", f"≤ {target.gram_l1:.3g}")
    gram.legend(handles=_legend(choices), loc="lower left", fontsize=9)
    num_judged = next(iter(choices.values())).num_judged
    teacher = cache.spec.teacher
    warning = ", RANDOM weights" if teacher.is_random else ""
    figure.suptitle(
        f"Codec auto at fidelity {target.cosine_p50:g}: {cache.spec.codec}\n"
        f"{teacher.name}{warning}, judged on {num_judged:,} rows that no table was fitted to"
    )
    figure.savefig(out, dpi=120)
    return out


def _draw_panel(axes: Axes, choices: Mapping[str, CodecChoice], style: str, loss_of: _Loss) -> None:
    for (_, choice), colour in _coloured(choices):
        klt = [point for point in choice.curve if point.codec.startswith("klt:")]
        rates = [point.row_bytes for point in klt]
        losses = [max(loss_of(point.fidelity), _LEAST) for point in klt]
        axes.plot(rates, losses, style, color=colour, linewidth=1.3, marker="o", markersize=3)
        for point in choice.curve:
            marker = _MARKERS[point.codec.partition(":")[0]]
            loss = max(loss_of(point.fidelity), _LEAST)
            if point not in klt:
                fill = colour if style == "-" else "white"
                axes.plot(point.row_bytes, loss, marker, color=colour, markerfacecolor=fill)
            if point.codec == choice.codec:
                star = axes.plot(point.row_bytes, loss, "*", color=colour, markersize=14, zorder=3)
                star[0].set(markeredgecolor="white", markeredgewidth=0.6)


def _draw_target(axes: Axes, loss: float, style: str, label: str) -> None:
    axes.axhline(loss, color="0.35", linestyle=style, linewidth=1)
    axes.annotate(
        label,
        (0.99, loss),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        horizontalalignment="right",
        color="0.25",
        fontsize=9,
    )


def _legend(choices: Mapping[str, CodecChoice]) -> list[object]:
    from matplotlib.lines import Line2D

    taps = [
        Line2D([], [], color=colour, label=f"{key}: {choice.codec}, {choice.chosen.row_bytes:,} B")
        for (key, choice), colour in _coloured(choices)
    ]
    codecs = [
        Line2D([], [], color="0.35", marker=marker, linestyle="", label=codec)
        for codec, marker in {"chosen": "*", **_MARKERS}.items()
    ]
    return [*taps, *codecs]


def _coloured(
    choices: Mapping[str, CodecChoice],
) -> list[tuple[tuple[str, CodecChoice], str]]:
    return [(item, _COLOURS[i % len(_COLOURS)]) for i, item in enumerate(choices.items())]
