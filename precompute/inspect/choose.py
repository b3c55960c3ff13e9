"""The smallest codec that keeps an image array well enough, by measuring what each keeps.

A fidelity F asks, on rows that no table was fit to, for

    centred cosine, median              at least  F
    centred cosine, 1st percentile      at least  1 - 10 (1 - F)
    Gram error                          at most   0.2 sqrt(1 - F)

One number for all three, because they are views of one error. Where the median is 0.98 to 0.995,
the worst tokens of ``klt`` lose seven to fourteen times as much; ten keeps out what does worse. A
cosine of F is an error of sqrt(2 (1 - F)) of a token's length, to which that of the cosines between
tokens is proportional: 0.1 to 0.2 times sqrt(1 - F) there, half that with ``int4``. (Random
ViT-B/16 on real words.)

Shapes: B rows, T image tokens, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Self

import torch

from ...shared.cache.codecs.codec import Codec
from ...shared.cache.codecs.codecs import feature_codec, measure_fidelity
from ...shared.cache.codecs.klt import KltBasis
from ...shared.errors import TeacherError, UsageError

_FIXED_CODECS = tuple(map(Codec.parse, ("fp16", "int8", "int4")))
_NUM_OCTAVES = 6
"""Rates of ``klt`` are first tried from a byte a value down, each half of the one before."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How well features are, or have to be, kept; measures as in `codecs.measure_fidelity`."""

    cosine_p50: float
    cosine_p01: float
    gram_l1: float

    def __str__(self) -> str:
        return (
            f"centred cosine {self.cosine_p50:.6g} (median), {self.cosine_p01:.6g} (1st "
            f"percentile); Gram error {self.gram_l1:.3g}"
        )

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
class RatePoint:
    """What one codec takes and keeps of an image array."""

    codec: Codec
    row_bytes: int
    """Of one row."""
    fidelity: Fidelity


@dataclass(frozen=True, kw_only=True)
class CodecChoice:
    """The codec of one image array, and why."""

    codec: Codec
    target: Fidelity
    num_judged: int
    """Rows that the curve was measured on; none of them went into a table."""
    curve: tuple[RatePoint, ...]
    """By bytes, rising."""

    @property
    def chosen(self) -> RatePoint:
        """The point of the curve that was taken."""
        return next(point for point in self.curve if point.codec == self.codec)


def choose_codec(features: torch.Tensor, basis: KltBasis, fidelity: float) -> CodecChoice:
    """Return the codec that keeps the features of an image array as asked in the fewest bytes.

    Args:
        features: To judge by; none of those that `basis` was fitted to. Shape: (B, T, D).
        basis: Of the array.
        fidelity: F.

    Raises:
        UsageError: no codec is as good, or there are no features.
    """
    if not len(features):
        raise UsageError(
            "codecs are judged by one row in nine of the first few thousand, and there is no good "
            "image among them; plan without --fidelity"
        )
    target = Fidelity.at(fidelity)
    curve = _Curve(features, basis)
    for codec in _FIXED_CODECS:
        # Of tokens of an odd width, or too large for half precision, it is none to choose.
        with contextlib.suppress(UsageError, TeacherError):
            curve.measure(codec)
    _search_rates(curve, features.shape[-1], target)
    return CodecChoice(
        codec=curve.smallest(target).codec,
        target=target,
        num_judged=len(features),
        curve=curve.points,
    )


def _search_rates(curve: _Curve, width: int, target: Fidelity) -> None:
    """Measure ``klt`` at rates of a ladder, then halve the step in which the target lies."""

    def is_enough(record_bytes: int) -> bool:
        point = curve.measure(Codec(kind="klt", record_bytes=record_bytes))
        return point.fidelity.meets(target)

    ladder = sorted({max(width >> octave, 1) for octave in range(_NUM_OCTAVES + 1)})
    enough = [rate for rate in ladder if is_enough(rate)]
    if not enough:
        return
    most = enough[0]
    least = max((rate for rate in ladder if rate < most), default=0)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if is_enough(middle) else (middle, most)


class _Curve:
    """What was measured of an image array so far."""

    def __init__(self, features: torch.Tensor, basis: KltBasis) -> None:
        self._features, self._basis = features, basis
        self._points: list[RatePoint] = []

    def measure(self, codec: Codec) -> RatePoint:
        """Return what a codec takes and keeps.

        Raises:
            UsageError: it cannot store tokens of this width.
            TeacherError: it cannot hold these features.
        """
        table = self._basis.table(codec.record_bytes) if codec.has_table else None
        coder = feature_codec(codec, table)
        _, num_tokens, width = self._features.shape
        row_bytes = coder.layout((num_tokens, width)).num_bytes
        decoded = coder.decode(coder.encode(self._features))
        kept = measure_fidelity(coder.target(self._features), decoded)
        measures = {field.name: kept[field.name] for field in dataclasses.fields(Fidelity)}
        point = RatePoint(codec=codec, row_bytes=row_bytes, fidelity=Fidelity(**measures))
        self._points.append(point)
        return point

    @property
    def points(self) -> tuple[RatePoint, ...]:
        """By bytes, rising."""
        return tuple(sorted(self._points, key=lambda point: point.row_bytes))

    def smallest(self, target: Fidelity) -> RatePoint:
        """Return the point of fewest bytes that meets a target.

        Raises:
            UsageError: there is none.
        """
        good = [point for point in self.points if point.fidelity.meets(target)]
        if good:
            return good[0]
        best = max(self.points, key=lambda point: point.fidelity.cosine_p50)
        raise UsageError(
            f"no codec keeps an image array as well as asked ({target}); the best is "
            f"{best.codec} ({best.fidelity}). Pass a lower --fidelity"
        )
