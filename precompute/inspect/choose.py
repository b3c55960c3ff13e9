"""Choose a tap's codec: measure what each takes and keeps, and take the smallest that will do.

Shapes: B rows, T image tokens, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses

import torch

from ...shared.cache.codecs.choice import CodecChoice, Fidelity, RatePoint
from ...shared.cache.codecs.codecs import feature_codec, klt_record_bytes, measure_fidelity
from ...shared.cache.codecs.klt import KltBasis
from ...shared.errors import TeacherError, UsageError

_FIXED_CODECS = ("fp16", "int8", "int4")
_NUM_OCTAVES = 6
"""Rates of ``klt`` are first tried from a byte a value down, each half of the one before."""


def choose_codec(features: torch.Tensor, basis: KltBasis, fidelity: float) -> CodecChoice:
    """Return the codec that keeps the features of a tap as ``auto:F`` asks in the fewest bytes.

    Args:
        features: To judge by; none of those that `basis` was fitted to. Shape: (B, T, D).
        basis: Of the tap.
        fidelity: F.

    Raises:
        UsageError: no codec is as good, or there are no features.
    """
    if not len(features):
        raise UsageError(
            "codec auto judges by one row in nine of the first few thousand, and there is no good "
            "image among them; name a codec, such as --codec fp16"
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
        return curve.measure(f"klt:{record_bytes}").fidelity.meets(target)

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
    """What was measured of a tap so far."""

    def __init__(self, features: torch.Tensor, basis: KltBasis) -> None:
        self._features, self._basis = features, basis
        self._points: list[RatePoint] = []

    def measure(self, name: str) -> RatePoint:
        """Return what a codec takes and keeps.

        Raises:
            UsageError: it cannot store tokens of this width.
            TeacherError: it cannot hold these features.
        """
        record_bytes = klt_record_bytes(name)
        codec = feature_codec(name, self._basis.table(record_bytes) if record_bytes else None)
        _, num_tokens, width = self._features.shape
        row_bytes = codec.layout((num_tokens, width)).num_bytes
        decoded = codec.decode(codec.encode(self._features))
        kept = measure_fidelity(codec.target(self._features), decoded)
        measures = {field.name: kept[field.name] for field in dataclasses.fields(Fidelity)}
        point = RatePoint(codec=name, row_bytes=row_bytes, fidelity=Fidelity(**measures))
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
            f"no codec keeps a tap as well as asked ({target}); the best is "
            f"{best.codec} ({best.fidelity}). Pass a lower --fidelity, or --codec "
            f"{best.codec}"
        )
