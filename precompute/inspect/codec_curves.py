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
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...shared.cache.codecs.codec import Codec
from ...shared.cache.codecs.codecs import feature_codec, measure_fidelity
from ...shared.cache.codecs.klt import KltBasis
from ...shared.errors import TeacherError, UsageError

_FIXED_CODECS = tuple(map(Codec.parse, ("fp16", "int8", "int4")))
_NUM_OCTAVES = 6
"""Rates of ``klt`` are first tried from a byte a value down, each half of the one before."""


@dataclass(frozen=True, kw_only=True)
class CodecPoint:
    """What one codec takes and keeps of an image array."""

    codec: Codec
    row_bytes: int
    """Of one row."""
    kept: Mapping[str, float]
    """The measures of `codecs.measure_fidelity`."""

    def meets(self, fidelity: float) -> bool:
        """Return whether it keeps all that a fidelity asks for."""
        lost = 1 - fidelity
        return (
            self.kept["cosine_p50"] >= fidelity
            and self.kept["cosine_p01"] >= round(1 - 10 * lost, 9)
            and self.kept["gram_l1"] <= round(0.2 * math.sqrt(lost), 9)
        )


@dataclass(frozen=True, kw_only=True)
class CodecCurve:
    """What was measured of one image array."""

    array: str
    fidelity: float
    """What the codec that is advised has to meet."""
    points: tuple[CodecPoint, ...]
    """By bytes, rising; at least one."""

    @property
    def advised(self) -> CodecPoint:
        """The fewest bytes that meet the fidelity; if nothing does, what comes nearest."""
        good = (point for point in self.points if point.meets(self.fidelity))
        return next(good, max(self.points, key=lambda point: point.kept["cosine_p50"]))


def measure_codecs(
    array: str, features: torch.Tensor, basis: KltBasis, fidelity: float
) -> CodecCurve:
    """Measure every codec on features of an array, ``klt`` at the rates around the fidelity.

    `basis` was fit to others. Shape: (B, T, D), B > 0.
    """
    points = {}

    def is_enough(codec: Codec) -> bool:
        points[codec] = _measure(codec, features, basis)
        return points[codec].meets(fidelity)

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
    return CodecCurve(array=array, fidelity=fidelity, points=tuple(by_bytes))


def _measure(codec: Codec, features: torch.Tensor, basis: KltBasis) -> CodecPoint:
    """Return what a codec takes and keeps.

    Raises:
        UsageError: it cannot store tokens of this width.
        TeacherError: it cannot hold these features.
    """
    coder = feature_codec(codec, basis.table(codec.record_bytes) if codec.has_table else None)
    row_bytes = features.shape[1] * codec.token_bytes(features.shape[2])
    kept = measure_fidelity(coder.target(features), coder.decode(coder.encode(features)))
    return CodecPoint(codec=codec, row_bytes=row_bytes, kept=kept)
