"""The figure of `clipocr cache plan --plot`: what each codec takes and loses, array by array."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .codec_curves import CodecCurve

_MARKERS = {"klt": ".", "int4": "^", "int8": "D", "fp16": "s"}
_LEAST_LOSS = 1e-9
"""Losses are drawn from here on, because a logarithm has no 0."""


def draw_codec_curves(curves: Sequence[CodecCurve], title: str, out: Path) -> None:
    """Draw angle and Gram error against the bytes of a row, a colour for each array, as a PNG."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels: tuple[tuple[str, Callable[[Mapping[str, float]], float]], ...] = (
        ("1 - centred cosine of a token, median", lambda kept: 1 - kept["cosine_p50"]),
        ("Gram error: mean difference of cosines between tokens", lambda kept: kept["gram_l1"]),
    )
    for axes, (label, loss_of) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.set(xscale="log", yscale="log", xlabel="bytes of a row", ylabel=label)
        axes.grid(which="major", alpha=0.3)
        for number, curve in enumerate(curves):
            losses = {p.codec: max(loss_of(p.kept), _LEAST_LOSS) for p in curve.points}
            by_rate = [point for point in curve.points if point.codec.kind == "klt"]
            axes.plot(
                [p.row_bytes for p in by_rate], [losses[p.codec] for p in by_rate], f"C{number}-"
            )
            for p in curve.points:
                axes.plot(p.row_bytes, losses[p.codec], f"C{number}{_MARKERS[p.codec.kind]}")
            best = curve.advised
            axes.plot(best.row_bytes, losses[best.codec], f"C{number}*", markersize=15)
    arrays = [
        Line2D([], [], color=f"C{number}",
               label=f"{curve.array}: {curve.advised.codec}, {curve.advised.row_bytes:,} bytes")
        for number, curve in enumerate(curves)
    ]  # fmt: skip
    codecs = [
        Line2D([], [], color="0.35", linestyle="", marker=marker, label=kind)
        for kind, marker in {**_MARKERS, "advised": "*"}.items()
    ]
    axes.legend(handles=[*arrays, *codecs])
    figure.savefig(out, dpi=120, format="png")
