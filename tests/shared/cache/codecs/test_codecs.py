from __future__ import annotations

import numpy as np
import pytest
import torch
from host_waits import HostWaits

from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.codecs.codecs import (
    FeatureCodec,
    feature_codec,
    filter_pixels,
    measure_fidelity,
    unfilter_pixels,
)
from clipocr.shared.cache.codecs.klt import fit_basis
from clipocr.shared.cache.codecs.quantize import standardise
from clipocr.shared.errors import TeacherError, UsageError


@pytest.mark.parametrize(
    "views",
    [
        np.random.default_rng(0).integers(0, 256, (5, 32, 128, 3)).astype(np.uint8),
        np.zeros((1, 32, 128, 3), np.uint8),
        np.full((1, 32, 128, 3), 255, np.uint8),
        np.indices((1, 32, 128, 3)).sum(axis=0).astype(np.uint8) % 2 * 255,
    ],
    ids=["random", "black", "white", "checks"],
)
def test_pixels_come_back_exactly(views: np.ndarray) -> None:
    stored = filter_pixels(views)
    assert stored.shape == (len(views), 3, 32, 128)
    np.testing.assert_array_equal(unfilter_pixels(torch.from_numpy(stored)).numpy(), views)


@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "klt:3"])
def test_encoding_makes_no_host_wait_for_a_gpu(name: str) -> None:
    """But for the check of the largest magnitude, which can be put off."""
    codec, features = klt_or_plain(name), torch.randn(2, 3, 8)
    codec.encode(features)
    with HostWaits() as waits:
        stored, largest = codec.begin_encoding(features)
    assert waits.found == []
    assert torch.equal(stored, codec.encode(features))
    assert float(largest) == float(features.abs().max())


def klt_or_plain(name: str) -> FeatureCodec:
    codec = Codec.parse(name)
    if codec.kind != "klt":
        return feature_codec(codec)
    tokens = standardise(torch.randn(500, 3, 8)).numpy()
    flat = tokens.reshape(-1, 8)
    basis = fit_basis(500, tokens.sum(axis=0), flat.T @ flat)
    return feature_codec(codec, basis.table(codec.record_bytes))


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
def test_decoding_makes_no_host_wait_for_a_gpu(name: str) -> None:
    """From the second batch on: the first may bring a table to the device."""
    codec = feature_codec(Codec.parse(name))
    stored = codec.encode(torch.randn(2, 3, 8))
    pixels = torch.from_numpy(filter_pixels(np.zeros((1, 32, 128, 3), np.uint8)))
    codec.decode(stored)
    with HostWaits() as waits:
        codec.decode(stored)
        unfilter_pixels(pixels)
    assert waits.found == []


def test_a_wait_is_found() -> None:
    """Of every kind that the tests look for."""
    x = torch.arange(6.0).view(2, 3)
    with HostWaits() as waits:
        x[:, [0, 2]]
        float(x.sum())
        x.nonzero()
        x[x > 2]
    assert len(waits.found) == 4


def test_a_grey_gradient_is_nearly_all_zeros() -> None:
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, None, :, None], (1, 32, 128, 3))
    stored = filter_pixels(ramp)
    # Red and blue equal green; green differs along x in its first row only.
    assert np.count_nonzero(stored) == 127


def test_fp16_keeps_what_half_precision_holds() -> None:
    features = torch.tensor([[[1.0, 2.5, -65504.0]]])
    stored = feature_codec(Codec.parse("fp16")).encode(features)
    assert stored.dtype == torch.float16
    torch.testing.assert_close(
        feature_codec(Codec.parse("fp16")).decode(stored).float(), features, rtol=0, atol=0
    )


@pytest.mark.parametrize("value", [65520.0, float("inf"), float("nan")])
def test_fp16_refuses_what_it_cannot_hold(value: float) -> None:
    with pytest.raises(TeacherError, match="beyond what fp16 holds"):
        feature_codec(Codec.parse("fp16")).encode(torch.tensor([[[1.0, value]]]))


def test_unknown_codec_names_the_known() -> None:
    with pytest.raises(UsageError, match="'zip' is unknown; expected one of fp16"):
        feature_codec(Codec.parse("zip"))


def test_fidelity_of_a_perfect_copy() -> None:
    features = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    measured = measure_fidelity(features, features.clone())
    assert measured["cosine_p50"] == pytest.approx(1, abs=1e-6)
    assert measured["gram_l1"] == 0
    assert measured["max_abs"] == 0


def test_fidelity_by_hand() -> None:
    # Two rows of one token; mean (2, 0), so the centred tokens are (-1, 0) and (1, 0).
    features = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    decoded = torch.tensor([[[1.0, 1.0]], [[3.0, 0.0]]])
    measured = measure_fidelity(features, decoded)
    # Centred decoded tokens are (-1, 1) and (1, 0): cosines 1 / sqrt(2) and 1.
    assert measured["cosine_p50"] == pytest.approx((0.5**0.5 + 1) / 2, abs=1e-6)
    # The Gram matrices differ off the diagonal only: 1 against 1 / sqrt(2), two of four entries.
    assert measured["gram_l1"] == pytest.approx((1 - 0.5**0.5) / 2, abs=1e-6)
    assert measured["max_abs"] == 1


def test_fidelity_of_constant_features_is_not_nan() -> None:
    features = torch.ones(3, 2, 4)
    assert measure_fidelity(features, features)["cosine_p01"] == 1


def test_fidelity_does_not_depend_on_the_number_of_threads() -> None:
    # Enough tokens that torch shares the sums out; commit records repeat what comes out.
    features = torch.randn(64, 17, 96, generator=torch.Generator().manual_seed(1))
    measured = []
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        measured.append(measure_fidelity(features, features.half()))
    torch.set_num_threads(1)
    assert measured[0] == measured[1] == measured[2]
    assert 0 < measured[0]["gram_l1"] < 1e-4
