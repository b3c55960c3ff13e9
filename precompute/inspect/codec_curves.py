"""What each codec takes and keeps of an image array, and which keeps enough in the fewest bytes.

A fidelity F asks, on rows that no table was fit to, for

    centred cosine, median              at least  F
    centred cosine, 1st percentile      at least  1 - 10 (1 - F)
    Gram error                          at most   0.2 sqrt(1 - F)

One number stands for all three, because they are views of one error. Where the median is 0.98 to
0.995, the worst tokens of ``klt`` lose seven to fourteen times as much; ten keeps out what does
worse. A cosine of F is an error of sqrt(2 (1 - F)) of a token's length, to which that of the
cosines between tokens is proportional: 0.1 to 0.2 times sqrt(1 - F) there, half that with ``int4``.
(Random ViT-B/16 on real words.)

Shapes: B rows, T image tokens, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from ...shared.cache.codecs.codec import Codec
from ...shared.cache.codecs.codecs import feature_codec, measure_fidelity
from ...shared.cache.codecs.klt import KltBasis
from ...shared.errors import TeacherError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FIXED_CODECS = tuple(map(Codec.parse, ("fp16", "int8", "int4")))
_NUM_OCTAVES = 6
"""Rates of ``klt`` are first tried from a byte a value down, each half of the one before."""
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito: the colour-blind tell them apart."""
_MARKERS = {"klt": "o", "int4": "^", "int8": "D", "fp16": "s"}
_LEAST_LOSS = 1e-9
"""Losses are drawn from here on, because a logarithm has no 0."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How well features are, or have to be, kept; measures as in `codecs.measure_fidelity`."""

    cosine_p50: float
    cosine_p01: float
    gram_l1: float

    @classmethod
    def at(cls, fidelity: float) -> Self:
        """Return what a fidelity F asks for."""
        lost = 1 - fidelity
        return cls(
            cosine_p50=fidelity,
            cosine_p01=round(1 - 10 * lost, 9),
            gram_l1=round(0.2 * math.sqrt(lost), 9),
        )

    def meets(self, target: Fidelity) -> bool:
        """Return whether this is at least as good in every respect."""
        return (
            self.cosine_p50 >= target.cosine_p50
            and self.cosine_p01 >= target.cosine_p01
            and self.gram_l1 <= target.gram_l1
        )


@dataclass(frozen=True, kw_only=True)
class CodecPoint:
    """What one codec takes and keeps of an image array."""

    codec: Codec
    row_bytes: int
    """Of one row."""
    fidelity: Fidelity


@dataclass(frozen=True, kw_only=True)
class CodecCurve:
    """What was measured of one image array."""

    array: str
    target: Fidelity
    points: tuple[CodecPoint, ...]
    """By bytes, rising; at least one."""

    @property
    def advised(self) -> CodecPoint:
        """The fewest bytes that meet the target; if nothing does, what comes nearest."""
        good = (point for point in self.points if point.fidelity.meets(self.target))
        return next(good, max(self.points, key=lambda point: point.fidelity.cosine_p50))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        points = [{**dataclasses.asdict(p), "codec": str(p.codec)} for p in self.points]
        return {"array": self.array, "advised": str(self.advised.codec), "points": points}


def measure_codecs(
    array: str, features: torch.Tensor, basis: KltBasis, fidelity: float
) -> CodecCurve:
    """Measure every codec on features of an array, ``klt`` at the rates around the target.

    `basis` was fit to others. Shape: (B, T, D), B > 0.
    """
    target, points = Fidelity.at(fidelity), {}

    def is_enough(codec: Codec) -> bool:
        points[codec] = _measure(codec, features, basis)
        return points[codec].fidelity.meets(target)

    for codec in _FIXED_CODECS:
        # Tokens of an odd width, or too large for half precision, cannot be stored by every codec.
        with contextlib.suppress(UsageError, TeacherError):
            is_enough(codec)
    width = features.shape[-1]
    ladder = sorted({max(width >> octave, 1) for octave in range(_NUM_OCTAVES + 1)})
    enough = [rate for rate in ladder if is_enough(Codec(kind="klt", record_bytes=rate))]
    if enough:
        # The target lies between two rates of the ladder: halve that step down to one byte.
        most = enough[0]
        least = max((rate for rate in ladder if rate < most), default=0)
        while most - least > 1:
            middle = (least + most) // 2
            is_met = is_enough(Codec(kind="klt", record_bytes=middle))
            least, most = (least, middle) if is_met else (middle, most)
    by_bytes = sorted(points.values(), key=lambda point: point.row_bytes)
    return CodecCurve(array=array, target=target, points=tuple(by_bytes))


def _measure(codec: Codec, features: torch.Tensor, basis: KltBasis) -> CodecPoint:
    """Return what a codec takes and keeps.

    Raises:
        UsageError: it cannot store tokens of this width.
        TeacherError: it cannot hold these features.
    """
    coder = feature_codec(codec, basis.table(codec.record_bytes) if codec.has_table else None)
    row_bytes = features.shape[1] * codec.token_bytes(features.shape[2])
    kept = measure_fidelity(coder.target(features), coder.decode(coder.encode(features)))
    measures = {field.name: kept[field.name] for field in dataclasses.fields(Fidelity)}
    return CodecPoint(codec=codec, row_bytes=row_bytes, fidelity=Fidelity(**measures))


# -- the figure -------------------------------------------------------------------------------


def plot_codec_curves(curves: Sequence[CodecCurve], title: str, out: Path) -> None:
    """Draw what each codec loses of each image array against its bytes, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(12, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    cosine, gram = figure.subplots(1, 2)
    target = curves[0].target
    for axes, loss_of, style, loss, label in (
        (cosine, lambda f: 1 - f.cosine_p50, "-", 1 - target.cosine_p50,
         f"median ≥ {target.cosine_p50:.6g}"),
        (cosine, lambda f: 1 - f.cosine_p01, "--", 1 - target.cosine_p01,
         f"1st percentile ≥ {target.cosine_p01:.6g}"),
        (gram, lambda f: f.gram_l1, "-", target.gram_l1, f"≤ {target.gram_l1:.3g}"),
    ):  # fmt: skip
        for number, curve in enumerate(curves):
            _plot_curve(axes, curve, loss_of, style, _COLOURS[number % len(_COLOURS)])
        axes.axhline(loss, color="0.35", linestyle=style, linewidth=1)
        axes.annotate(
            label, (0.99, loss), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", horizontalalignment="right", color="0.25", fontsize=9,
        )  # fmt: skip
    cosine.set(title="Angle of a token")
    cosine.set_ylabel("1 - centred cosine: median (solid), 1st percentile (dashed)")
    gram.set(title="Angles between tokens")
    gram.set_ylabel("Gram error: mean absolute difference of cosines")
    for axes in (cosine, gram):
        axes.set(xscale="log", yscale="log", xlabel="bytes per row and array")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(which="major", alpha=0.3)
    gram.legend(handles=_legend(curves), loc="lower left", fontsize=9)
    figure.suptitle(title)
    figure.savefig(out, dpi=120, format="png")


def _plot_curve(
    axes: Axes, curve: CodecCurve, loss_of: Callable[[Fidelity], float], style: str, colour: str
) -> None:
    losses = {point: max(loss_of(point.fidelity), _LEAST_LOSS) for point in curve.points}
    klt = [point for point in curve.points if point.codec.kind == "klt"]
    rates = [point.row_bytes for point in klt]
    line = [losses[point] for point in klt]
    axes.plot(rates, line, style, color=colour, linewidth=1.3, marker="o", markersize=3)
    fill = colour if style == "-" else "white"
    for point in set(curve.points) - set(klt):
        marker = _MARKERS[point.codec.kind]
        axes.plot(point.row_bytes, losses[point], marker, color=colour, markerfacecolor=fill)
    advised = curve.advised
    (star,) = axes.plot(advised.row_bytes, losses[advised], "*", color=colour, markersize=14)
    star.set(markeredgecolor="white", markeredgewidth=0.6, zorder=3)


def _legend(curves: Sequence[CodecCurve]) -> list[Any]:
    from matplotlib.lines import Line2D

    arrays = [
        Line2D(
            [], [], color=_COLOURS[number % len(_COLOURS)],
            label=f"{curve.array}: {curve.advised.codec}, {curve.advised.row_bytes:,} B",
        )
        for number, curve in enumerate(curves)
    ]  # fmt: skip
    codecs = [
        Line2D([], [], color="0.35", marker=marker, linestyle="", label=kind)
        for kind, marker in {"advised": "*", **_MARKERS}.items()
    ]
    return [*arrays, *codecs]
