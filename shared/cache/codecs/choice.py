"""The codec that ``auto`` chose for a tap: what was asked, what was measured, what was taken.

``auto:F`` asks for the fewest bytes that keep features this well, judged on rows that the codec's
tables were not fitted to:

    centred cosine, median              at least  F
    centred cosine, 1st percentile      at least  1 - 10 (1 - F)
    Gram error                          at most   0.2 sqrt(1 - F)

One number for all three, because they are views of one error. Where the median is 0.98 to 0.995,
the worst tokens of ``klt`` lose seven to fourteen times as much; ten keeps out what does worse. A
cosine of F is an error of sqrt(2 (1 - F)) of a token's length, to which that of the cosines between
tokens is proportional: 0.1 to 0.2 times sqrt(1 - F) there, half that with ``int4``. (Random
ViT-B/16 on real words.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from ...errors import UsageError

_AUTO = "auto:"
DEFAULT_FIDELITY = 0.99


def asked_fidelity(codec: str) -> float | None:
    """Return the F of ``auto:F``, of ``auto`` the usual one; None of a codec that is named.

    Raises:
        UsageError: F is not a number between 0 and 1.
    """
    if codec == _AUTO.removesuffix(":"):
        return DEFAULT_FIDELITY
    if not codec.startswith(_AUTO):
        return None
    try:
        fidelity = float(codec.removeprefix(_AUTO))
    except ValueError:
        fidelity = math.nan
    if not 0 < fidelity < 1:
        raise UsageError(
            f"codec {codec!r}: fidelity is the median cosine to keep, between 0 and 1, such as "
            f"{DEFAULT_FIDELITY}"
        )
    return fidelity


def auto_codec(fidelity: float) -> str:
    """Return ``auto:F``, which the same F always makes the same name."""
    return f"{_AUTO}{fidelity!r}"


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
        """Return what ``auto:F`` asks for."""
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
    """What one codec takes and keeps of a tap."""

    codec: str
    row_bytes: int
    """Of one tap of one row."""
    fidelity: Fidelity


@dataclass(frozen=True, kw_only=True)
class CodecChoice:
    """The codec of one tap, and why."""

    codec: str
    target: Fidelity
    num_judged: int
    """Rows that the curve was measured on; none of them went into a table."""
    curve: tuple[RatePoint, ...]
    """By bytes, rising."""

    @property
    def chosen(self) -> RatePoint:
        """The point of the curve that was taken."""
        return next(point for point in self.curve if point.codec == self.codec)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a choice from its JSON form."""
        curve = (
            RatePoint(**{**point, "fidelity": Fidelity(**point["fidelity"])})
            for point in data["curve"]
        )
        return cls(**{**data, "target": Fidelity(**data["target"]), "curve": tuple(curve)})
