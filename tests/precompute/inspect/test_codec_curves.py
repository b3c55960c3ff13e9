"""The fewest bytes that keep features as well as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipocr.precompute.builder.calibrate import fit_rows
from clipocr.precompute.inspect.codec_curves import CodecCurve, CodecPoint, measure_codecs
from clipocr.shared.cache.codecs.codec import Codec


@pytest.mark.parametrize(
    ("found", "is_enough"),
    [
        ((0.99, 0.9, 0.02), True),
        ((0.9899, 1.0, 0.0), False),
        ((1.0, 0.8999, 0.0), False),
        ((1.0, 1.0, 0.0201), False),
    ],
)
def test_every_measure_counts(found: tuple[float, float, float], is_enough: bool) -> None:
    kept = dict(zip(("cosine_p50", "cosine_p01", "gram_l1"), found, strict=True))
    point = CodecPoint(codec=Codec.parse("int8"), row_bytes=1, kept=kept)
    assert point.meets(0.99) is is_enough


def falling_features(num_rows: int, seed: int, width: int = 32) -> torch.Tensor:
    """Return tokens whose variance falls along fixed directions."""
    basis = np.linalg.qr(np.random.default_rng(7).normal(size=(width, width)))[0]
    rows = np.random.default_rng(seed).normal(size=(num_rows, 4, width))
    return torch.from_numpy((rows * np.arange(1, width + 1) ** -1.0) @ basis).float()


def curve_of(features: torch.Tensor, num_judged: int, fidelity: float) -> CodecCurve:
    """Judge by the first rows, fit to the others."""
    basis = fit_rows(features[num_judged:])
    return measure_codecs("block3", features[:num_judged], basis, fidelity)


def test_a_higher_fidelity_takes_more() -> None:
    features = falling_features(360, 0)
    curves = [curve_of(features, 60, fidelity) for fidelity in (0.9, 0.99, 0.999, 0.999999)]
    taken = [curve.advised.row_bytes for curve in curves]
    assert taken == sorted(set(taken))
    assert str(curves[-1].advised.codec) == "fp16"
    rates = [point.row_bytes for point in curves[0].points]
    assert rates == sorted(rates)


def test_where_nothing_meets_the_target_the_nearest_is_advised() -> None:
    curve = curve_of(falling_features(59, 0), 9, 1 - 1e-12)
    assert not any(point.meets(curve.fidelity) for point in curve.points)
    assert str(curve.advised.codec) == "fp16"


def test_a_codec_that_cannot_hold_the_features_is_left_out() -> None:
    # Beyond half precision; of an odd width.
    curve = curve_of(falling_features(40, 0, width=33) * 1e6, 9, 0.9)
    assert not {"fp16", "int4"} & {str(point.codec) for point in curve.points}
    assert curve.advised.codec.kind == "klt"


def test_the_rate_advised_is_the_smallest_that_will_do() -> None:
    curve = curve_of(falling_features(360, 0), 60, 0.98)
    advised = curve.advised.codec
    assert advised.kind == "klt"
    points = {point.codec: point for point in curve.points}
    smaller = Codec(kind="klt", record_bytes=advised.record_bytes - 1)
    assert points[advised].meets(curve.fidelity)
    assert not points[smaller].meets(curve.fidelity)
