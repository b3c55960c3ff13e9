"""Transform coding: what it keeps, where its bits go, and the bytes it writes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from clipocr.shared.cache.codecs import klt
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.codecs.codecs import FeatureCodec, feature_codec, measure_fidelity
from clipocr.shared.cache.codecs.quantize import standardise
from clipocr.shared.errors import TeacherError, UsageError

NUM_TOKENS, WIDTH = 5, 64


def features_of(num_rows: int, seed: int = 0) -> torch.Tensor:
    """Return tokens whose variance falls along hidden directions, around a mean of their own."""
    fixed = np.random.default_rng(7)
    basis = np.linalg.qr(fixed.normal(size=(WIDTH, WIDTH)))[0]
    mean = fixed.normal(size=(NUM_TOKENS, WIDTH))
    rng = np.random.default_rng(seed)
    spread = np.arange(1, WIDTH + 1) ** -0.8
    features = mean + (rng.normal(size=(num_rows, NUM_TOKENS, WIDTH)) * spread) @ basis
    return torch.from_numpy(features.astype(np.float32))


def table_of(features: torch.Tensor, record_bytes: int) -> np.ndarray:
    tokens = standardise(features)
    flat = tokens.flatten(0, 1)
    sums, products = tokens.sum(0).numpy(), (flat.T @ flat).numpy()
    return klt.fit_basis(len(features), sums, products).table(record_bytes)


def codec_of(record_bytes: int) -> FeatureCodec:
    return feature_codec(
        Codec.parse(f"klt:{record_bytes}"), table_of(features_of(400), record_bytes)
    )


def decode_with_numpy(records: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Decode as the docstring of `klt` says, in double precision."""
    table = table.astype(np.float64)
    mean, rest = table[:NUM_TOKENS], table[NUM_TOKENS:]
    deviation, bits = rest[0], rest[1].astype(int)
    levels, basis = rest[2:10].flatten(), rest[10:]
    ones = np.unpackbits(records, axis=-1)
    features, start = mean[None].repeat(len(records), axis=0), 0
    for k, b in enumerate(bits):
        if b:
            code = ones[..., start : start + b] @ (1 << np.arange(b)[::-1])
            features = features + (levels[2**b - 2 + code] * deviation[k])[..., None] * basis[k]
            start += b
    return features


# --------------------------------------------------------------------------------------- levels


def test_levels_are_those_of_max_1960() -> None:
    assert klt.gaussian_levels(1) == pytest.approx([-0.7980, 0.7980], abs=2e-4)
    assert klt.gaussian_levels(2) == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=5e-4)
    assert klt.gaussian_levels(3)[4:] == pytest.approx([0.2451, 0.7560, 1.344, 2.152], abs=5e-4)
    expected = [1, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499]
    assert [klt.gaussian_distortion(b) for b in range(6)] == pytest.approx(expected, rel=3e-3)
    assert klt.gaussian_distortion(6) == pytest.approx(0.000644, rel=1e-3)
    # Many levels: sqrt(3) pi / 2 / 4^b (Panter and Dite).
    assert klt.gaussian_distortion(8) * 4**8 == pytest.approx(math.sqrt(3) * math.pi / 2, rel=0.02)


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_levels_are_the_means_of_their_cells(num_bits: int) -> None:
    levels = klt.gaussian_levels(num_bits)
    assert len(levels) == 2**num_bits
    ends = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(levels)), math.inf]
    for level, (low, high) in zip(levels, itertools.pairwise(ends), strict=True):
        mass = (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2
        moment = (math.exp(-low * low / 2) - math.exp(-high * high / 2)) / math.sqrt(2 * math.pi)
        assert level == pytest.approx(moment / mass, abs=2e-6)


# ---------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("num_bits", [0, 1, 5, 9, 14, 32, 40])
@pytest.mark.parametrize("variances", [(4.0, 1.0, 0.5, 0.01), (1.0, 1.0, 1.0, 1.0)])
def test_bits_are_the_best_there_are(variances: tuple[float, ...], num_bits: int) -> None:
    def lost(bits: tuple[int, ...]) -> float:
        pairs = zip(variances, bits, strict=True)
        return sum(v * klt.gaussian_distortion(b) for v, b in pairs)

    every = itertools.product(range(klt.MAX_BITS + 1), repeat=4)
    best = min(lost(bits) for bits in every if sum(bits) <= num_bits)
    bits = klt.allocate_bits(np.asarray(variances), num_bits)
    assert sum(bits) == min(num_bits, 4 * klt.MAX_BITS)
    assert lost(tuple(bits.tolist())) == pytest.approx(best, rel=1e-12)
    assert sorted(bits, reverse=True) == bits.tolist()


def test_what_does_not_vary_gets_no_bits() -> None:
    assert klt.allocate_bits(np.asarray([1.0, 1e-12, 0.0]), 18).tolist() == [8, 0, 0]
    assert klt.allocate_bits(np.zeros(3), 18).tolist() == [0, 0, 0]


# --------------------------------------------------------------------------------------- tables


def test_the_basis_diagonalises_and_the_deviations_are_those_of_the_sample() -> None:
    features = features_of(400)
    table = table_of(features, 40).astype(np.float64)
    basis, kept = table[NUM_TOKENS + 10 :], table[NUM_TOKENS + 1] > 0
    basis = basis[kept]
    np.testing.assert_allclose(basis @ basis.T, np.eye(kept.sum()), atol=1e-6)
    centred = standardise(features).numpy() - table[:NUM_TOKENS]
    components = centred.reshape(-1, WIDTH) @ basis.T
    covariance = components.T @ components / len(components)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), table[NUM_TOKENS][kept], rtol=1e-4)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-6)
    assert (np.diff(table[NUM_TOKENS + 1]) <= 0).all()
    assert 8 * 40 - table[NUM_TOKENS + 1].sum() < 8


def test_a_sample_of_nothing_makes_a_table_of_nothing() -> None:
    table = klt.fit_basis(0, np.zeros((NUM_TOKENS, WIDTH)), np.zeros((WIDTH, WIDTH))).table(16)
    codec = feature_codec(Codec.parse("klt:16"), table)
    stored = codec.encode(features_of(2))
    assert not stored.any()
    assert not codec.decode(stored).any()


# --------------------------------------------------------------------------------------- codec


def test_bytes() -> None:
    """Three components of 6, 3 and 1 bits: ten bits, filled up to two bytes."""
    table = np.zeros((klt.num_table_rows(1, WIDTH), WIDTH), np.float32)
    table[0, 0] = 0.5  # The mean.
    table[1, :3] = 2, 1, 0.5  # Deviations.
    table[2, :3] = 6, 3, 1  # Bits.
    for b in range(1, 9):
        table[3:11].flat[2**b - 2 : 2 ** (b + 1) - 2] = klt.gaussian_levels(b)
    table[11, 4], table[12, 5], table[13, 6] = 1, 1, 1  # The basis.
    ready = klt.KltTable(table, 2, torch.device("cpu"))
    token = torch.zeros(1, 1, WIDTH, dtype=torch.float64)
    levels = klt.gaussian_levels(6)
    token[0, 0, [0, 4, 5, 6]] = torch.tensor([0.5, 2 * levels[37], 1.3, -9.0]).double()
    stored = ready.encode(token)
    # Level 37 of 64; 1.344 is number 6 of 8; the lower of two.
    assert stored.tolist() == [[[0b10010111, 0b00000000]]]
    decoded = ready.decode(stored)[0, 0]
    expected = {0: 0.5, 4: 2 * levels[37], 5: klt.gaussian_levels(3)[6], 6: -0.5 * 0.797885}
    for channel in range(WIDTH):
        assert float(decoded[channel]) == pytest.approx(expected.get(channel, 0.0), rel=1e-6)


@pytest.mark.parametrize("record_bytes", [1, 7, 16, 48])
def test_decoded_is_what_numpy_says(record_bytes: int) -> None:
    codec, features = codec_of(record_bytes), features_of(20, seed=3)
    stored = codec.encode(features)
    assert stored.dtype == torch.uint8
    assert stored.shape == (20, NUM_TOKENS, record_bytes)
    decoded = codec.decode(stored)
    assert decoded.dtype == torch.float32
    expected = decode_with_numpy(stored.numpy(), table_of(features_of(400), record_bytes))
    np.testing.assert_allclose(decoded, expected, atol=2e-6)


def test_more_bytes_keep_more() -> None:
    features = features_of(50, seed=5)
    found = []
    for record_bytes in (2, 4, 8, 16, 24, 32, 48):
        codec = codec_of(record_bytes)
        decoded = codec.decode(codec.encode(features))
        found.append(measure_fidelity(codec.target(features), decoded))
    cosines = [f["cosine_p50"] for f in found]
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.9 < 0.999 < cosines[-1]
    assert found[-1]["gram_l1"] < found[2]["gram_l1"] < found[0]["gram_l1"]


def test_the_error_is_what_the_bits_promise() -> None:
    """Mean square error = sum of variance times distortion: the theory that allocates the bits."""
    features = features_of(2000)
    table = table_of(features, 16)
    codec = feature_codec(Codec.parse("klt:16"), table)
    error = codec.decode(codec.encode(features)).double() - codec.target(features)
    tokens = standardise(features).numpy() - table[:NUM_TOKENS]
    total = (tokens**2).sum(-1).mean()
    deviation, bits = table[NUM_TOKENS].astype(np.float64), table[NUM_TOKENS + 1].astype(int)
    kept = sum(
        d * d * (1 - klt.gaussian_distortion(b)) for d, b in zip(deviation, bits, strict=True)
    )
    assert float(error.square().sum(-1).mean()) == pytest.approx(total - kept, rel=0.03)


def test_bytes_do_not_depend_on_the_batch_or_the_threads() -> None:
    codec, features = codec_of(24), features_of(30)
    stored = codec.encode(features)
    assert torch.equal(codec.encode(features[3:4]), stored[3:4])
    torch.set_num_threads(3)
    assert torch.equal(codec.encode(features), stored)
    torch.set_num_threads(1)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_refused(value: float) -> None:
    features = features_of(2)
    features[1, 2, 3] = value
    with pytest.raises(TeacherError, match="beyond what klt:24 holds"):
        codec_of(24).encode(features)


@pytest.mark.parametrize("name", ["klt:0", "klt:65", "klt"])
def test_records_that_cannot_be_filled_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"does not fit tokens of 64; pass klt:1 to klt:64"):
        Codec.parse(name).token_bytes(WIDTH)


@pytest.mark.parametrize("name", ["klt:", "klt:x", "klt:-3", "klt192"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name!r} is unknown"):
        feature_codec(Codec.parse(name))
