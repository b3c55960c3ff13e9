"""The fewest bytes that keep features as well as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipocr.precompute.builder.calibrate import fit_rows
from clipocr.precompute.inspect.choose import Fidelity, choose_codec
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.errors import UsageError


def test_what_a_fidelity_asks_for() -> None:
    assert Fidelity.at(0.99) == Fidelity(cosine_p50=0.99, cosine_p01=0.9, gram_l1=0.02)
    assert Fidelity.at(0.96) == Fidelity(cosine_p50=0.96, cosine_p01=0.6, gram_l1=0.04)


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
    fidelity = Fidelity(cosine_p50=found[0], cosine_p01=found[1], gram_l1=found[2])
    assert fidelity.meets(Fidelity.at(0.99)) is is_enough


def falling_features(num_rows: int, seed: int, width: int = 32) -> torch.Tensor:
    """Return tokens whose variance falls along fixed directions."""
    basis = np.linalg.qr(np.random.default_rng(7).normal(size=(width, width)))[0]
    rows = np.random.default_rng(seed).normal(size=(num_rows, 4, width))
    return torch.from_numpy((rows * np.arange(1, width + 1) ** -1.0) @ basis).float()


def test_a_higher_fidelity_takes_more() -> None:
    basis, judged = fit_rows(falling_features(300, 0)), falling_features(60, 1)
    chosen = [choose_codec(judged, basis, fidelity) for fidelity in (0.9, 0.99, 0.999, 0.999999)]
    taken = [choice.chosen.row_bytes for choice in chosen]
    assert taken == sorted(set(taken))
    assert str(chosen[-1].codec) == "fp16"
    rates = [point.row_bytes for point in chosen[0].curve]
    assert rates == sorted(rates)


def test_a_target_that_nothing_meets_is_refused() -> None:
    basis, judged = fit_rows(falling_features(50, 0)), falling_features(9, 1)
    with pytest.raises(UsageError, match=r"the best is fp16 .* Pass a lower --fidelity"):
        choose_codec(judged, basis, 1 - 1e-12)


def test_a_codec_that_cannot_hold_the_features_is_none_to_choose() -> None:
    large = falling_features(40, 0, width=33) * 1e6  # Beyond half precision; of an odd width.
    choice = choose_codec(large[:9], fit_rows(large[9:]), 0.9)
    assert not {"fp16", "int4"} & {str(point.codec) for point in choice.curve}
    assert choice.codec.kind == "klt"


def test_the_rate_taken_is_the_smallest_that_will_do() -> None:
    basis, judged = fit_rows(falling_features(300, 0)), falling_features(60, 1)
    choice = choose_codec(judged, basis, 0.98)
    assert choice.codec.kind == "klt"
    curve = {point.codec: point for point in choice.curve}
    smaller = Codec(kind="klt", record_bytes=choice.codec.record_bytes - 1)
    assert curve[choice.codec].fidelity.meets(choice.target)
    assert not curve[smaller].fidelity.meets(choice.target)


def test_without_a_row_to_judge_by_there_is_no_choice() -> None:
    basis = fit_rows(falling_features(50, 0))
    with pytest.raises(UsageError, match="no good image among them; plan without --fidelity"):
        choose_codec(torch.empty(0, 4, 32), basis, 0.9)
