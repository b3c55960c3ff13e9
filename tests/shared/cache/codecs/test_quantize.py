"""The codecs of few bits: their bytes, their bounds, and the tokens that break naive ones."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.codecs.codecs import FeatureCodec, feature_codec, measure_fidelity
from clipocr.shared.cache.codecs.quantize import (
    INT4_LEVELS,
    decode_int4,
    decode_int8,
    encode_int4,
    encode_int8,
)
from clipocr.shared.errors import TeacherError, UsageError

LOSSY = ("int8", "int4")


def tokens_like_clips(num_rows: int = 40, width: int = 64) -> torch.Tensor:
    """Return tokens around a mean of their position, two channels ten times the others."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(num_rows, 17, width)) + rng.normal(size=(17, width))
    features[..., [5, 40]] *= 10
    return torch.from_numpy(features.astype(np.float32))


@pytest.fixture(params=LOSSY)
def codec(request: pytest.FixtureRequest) -> FeatureCodec:
    return feature_codec(Codec.parse(request.param))


# ---------------------------------------------------------------------------------------- bytes


# Four large values, stored in the order of their size.
HEAD = np.asarray([4, 3, 5, 0], "<i2").tobytes() + np.asarray([30, -20, 9.5, 9], "<f2").tobytes()


def test_int8_bytes() -> None:
    # Steps of 2 / 127: 1 is 63.5 of them, and goes to the even neighbour.
    token = [9.0, 2.0, -2.0, -20.0, 30.0, 9.5, 1.0, 0.0, -1.5]
    stored = encode_int8(torch.tensor([[token]], dtype=torch.float64))
    codes = np.asarray([0, 127, -127, 0, 0, 0, 64, 0, -95], np.int8)
    assert stored.numpy().tobytes() == b"\x00\x40" + HEAD + codes.tobytes()
    step = np.float32(2) / np.float32(127)
    expected = np.asarray([9, 127 * step, -127 * step, -20, 30, 9.5, 64 * step, 0, -95 * step])
    assert decode_int8(stored).numpy().tobytes() == expected.astype(np.float32).tobytes()


def test_int4_bytes() -> None:
    # The other six have a mean square of 1.
    token = [9.0, 1.0, -1.0, -20.0, 30.0, 9.5, -1.0, 1.0, 1.0, -1.0]
    stored = encode_int4(torch.tensor([[token]], dtype=torch.float64))
    # 1 lies between 0.942 and 1.256, nearer the first: code 11, and -1: code 4. 0 is code 7.
    codes = bytes([0xB7, 0x74, 0x77, 0xB4, 0x4B])
    assert stored.numpy().tobytes() == b"\x00\x3c" + HEAD + codes
    near = 0.94234
    expected = np.asarray([9, near, -near, -20, 30, 9.5, -near, near, near, -near])
    assert decode_int4(stored).numpy().tobytes() == expected.astype(np.float32).tobytes()


def test_a_record_is_as_long_as_the_spec_says(codec: FeatureCodec) -> None:
    features = tokens_like_clips()
    token_bytes = Codec.parse(codec.name).token_bytes(64)
    stored = codec.encode(features)
    assert stored.dtype == torch.uint8
    assert stored.shape[1:] == (17, token_bytes)
    assert token_bytes == {"int8": 64 + 18, "int4": 32 + 18}[codec.name]


@pytest.mark.parametrize("width", [63, 4])
def test_int4_refuses_what_it_cannot_pack(width: int) -> None:
    with pytest.raises(UsageError, match=f"a token of {width} has none"):
        Codec.parse("int4").token_bytes(width)


# ----------------------------------------------------------------------------------- arithmetic


def standardised(features: torch.Tensor) -> np.ndarray:
    x = features.numpy().astype(np.float64)
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def transcribed(token: np.ndarray, codec: str) -> np.ndarray:
    """Quantise one token as the module's docstring says, one number at a time."""
    largest = sorted(range(len(token)), key=lambda i: (-abs(token[i]), i))[:4]
    rest = [0.0 if i in largest else float(v) for i, v in enumerate(token)]
    if codec == "int8":
        step = float(np.float16(max(map(abs, rest)))) / 127
        values = [max(-127, min(127, round(v / step))) * step for v in rest]
    else:
        scale = float(np.float16(math.sqrt(sum(v * v for v in rest) / (len(token) - 4))))
        values = [min(INT4_LEVELS, key=lambda x: abs(v / scale - x)) * scale for v in rest]
    for i in largest:
        values[i] = float(np.float16(token[i]))
    return np.asarray(values)


def test_decoded_is_what_the_transcription_says(codec: FeatureCodec) -> None:
    features = tokens_like_clips()
    expected = [transcribed(token, codec.name) for token in standardised(features).reshape(-1, 64)]
    decoded = codec.decode(codec.encode(features))
    assert decoded.dtype == torch.float32
    np.testing.assert_allclose(decoded.reshape(-1, 64), np.stack(expected), rtol=3e-7, atol=1e-9)


def test_int8_errs_by_half_a_step() -> None:
    codec, features = feature_codec(Codec.parse("int8")), tokens_like_clips()
    exact = standardised(features)
    step = np.sort(np.abs(exact), axis=-1)[..., -5:-4] / 127
    error = np.abs(codec.decode(codec.encode(features)).numpy() - exact)
    # Half precision of the scale, and of the values apart.
    assert (error <= step * (0.5 + 2**-4) + 2**-11 * np.abs(exact)).all()


def test_int4_errs_as_a_gaussian_source_must() -> None:
    features = torch.from_numpy(np.random.default_rng(1).normal(size=(8, 17, 768)))
    codec = feature_codec(Codec.parse("int4"))
    error = codec.decode(codec.encode(features)).double() - codec.target(features)
    # Max (1960), table I: a mean square of 0.009497; here the four largest are exact.
    assert 0.008 < float(error.square().mean()) < 0.0095


def test_the_levels_are_the_means_of_their_cells() -> None:
    bounds = [-math.inf, *((a + b) / 2 for a, b in pairwise(INT4_LEVELS))]
    for level, low, high in zip(INT4_LEVELS, bounds, [*bounds[1:], math.inf], strict=True):
        mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
        moment = (math.exp(-low * low / 2) - math.exp(-high * high / 2)) / math.sqrt(2 * math.pi)
        assert level == pytest.approx(moment / mass, abs=2e-6)


def test_a_layernorm_makes_them_the_teachers_again(codec: FeatureCodec) -> None:
    """The reason why standardised tokens will do: what a head's LayerNorm makes of both."""
    features = tokens_like_clips(width=768)
    decoded = codec.decode(codec.encode(features))
    norm = torch.nn.LayerNorm(768)
    torch.testing.assert_close(
        norm(codec.target(features).float()), norm(features), rtol=1e-4, atol=1e-5
    )
    cosine = torch.nn.functional.cosine_similarity(norm(decoded), norm(features), dim=2)
    assert cosine.min() > {"int8": 0.999, "int4": 0.99}[codec.name]


def test_bytes_depend_on_the_token_alone(codec: FeatureCodec) -> None:
    features = tokens_like_clips()
    stored = codec.encode(features)
    assert torch.equal(codec.encode(features[3:4, 5:6]), stored[3:4, 5:6])
    torch.set_num_threads(3)
    assert torch.equal(codec.encode(features), stored)
    torch.set_num_threads(1)


def test_parts_of_a_batch_decode_alike(codec: FeatureCodec) -> None:
    stored = codec.encode(tokens_like_clips())
    decoded = codec.decode(stored)
    assert torch.equal(codec.decode(stored[3:4, 5:6]), decoded[3:4, 5:6])
    assert codec.decode(stored[:0]).shape == (0, 17, 64)


# ------------------------------------------------------------------------------- awkward tokens


@pytest.mark.parametrize("value", [0.0, 7.5, -1e6])
def test_constant_tokens_become_zeros(codec: FeatureCodec, value: float) -> None:
    decoded = codec.decode(codec.encode(torch.full((2, 3, 32), value)))
    assert not decoded.any()


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e6, 1e30])
def test_the_size_of_a_token_does_not_matter(codec: FeatureCodec, size: float) -> None:
    features = tokens_like_clips() * size
    decoded, target = codec.decode(codec.encode(features)).double(), codec.target(features)
    cosine = torch.nn.functional.cosine_similarity(decoded, target, dim=2)
    assert cosine.min() > {"int8": 0.999, "int4": 0.97}[codec.name]


def test_one_huge_channel_leaves_the_others_alone() -> None:
    """Steps of the largest value would leave nothing of the others: 0.24 of their cosine."""
    features = tokens_like_clips(width=768)
    features[..., 100] = 1000.0
    for name, least in (("int4", 0.98), ("int8", 0.999)):
        codec = feature_codec(Codec.parse(name))
        target, decoded = codec.target(features), codec.decode(codec.encode(features)).double()
        others = [channel for channel in range(768) if channel not in (5, 40, 100)]
        cosine = torch.nn.functional.cosine_similarity(
            decoded[..., others], target[..., others], dim=2
        )
        assert cosine.median() > least
        assert (decoded[..., 100] / target[..., 100] - 1).abs().max() < 2**-10


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_refused(codec: FeatureCodec, value: float) -> None:
    features = tokens_like_clips()
    features[1, 2, 3] = value
    with pytest.raises(TeacherError, match=f"beyond what {codec.name} holds"):
        codec.encode(features)


def test_fidelity_of_each_codec() -> None:
    features = tokens_like_clips(width=768)
    found = {}
    for name in ("fp16", *LOSSY):
        codec = feature_codec(Codec.parse(name))
        decoded = codec.decode(codec.encode(features))
        found[name] = measure_fidelity(codec.target(features), decoded)
    assert found["fp16"]["cosine_p01"] > 0.999999
    assert found["int8"]["cosine_p01"] > 0.9997
    assert 0.98 < found["int4"]["cosine_p01"] < found["int4"]["cosine_p50"] < 0.999
    assert found["int8"]["gram_l1"] < found["int4"]["gram_l1"] < 0.02
