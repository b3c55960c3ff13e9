"""How pixels and teacher features become stored numbers, and back on the training device.

    fp16     2 D bytes a token: the teacher's numbers as they are
    int8     D + 18: the token standardised, 255 levels, its four largest values apart
    int4     D / 2 + 18: the token standardised, sixteen levels, its four largest values apart
    klt:P    P: the token standardised, less its position's mean, in a basis fit to the features

Only ``fp16`` gives back the teacher's numbers. The others give back each token as a LayerNorm
without gain and bias returns it; a second LayerNorm, which is what a student's heads begin with,
makes the two the same but for rounding.

Pixels are filtered in NumPy where views are made. All else is torch on whatever device the numbers
are: features are encoded where the teacher ran and decoded where the student trains.

Shapes: B rows, T image tokens, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import TeacherError, UsageError
from ...geometry import VIEW_SHAPE
from . import klt
from .codec import Codec
from .klt import KltTable

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[np.uint8]

_FP16_MAX = 65504.0
_FP32_MAX = 3.4e38

# Repeated from `quantize`, because that imports torch, which layouts and pixels do not need.
_NUM_OUTLIERS = 4
_HEAD_BYTES = 2 + 4 * _NUM_OUTLIERS


@dataclass(frozen=True, kw_only=True)
class StoredRow:
    """What one row of an array looks like on disk."""

    row_shape: tuple[int, ...]
    dtype: str
    compressed: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of a row, before compression."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize


class FeatureCodec(ABC):
    """Stores an image array; unless a codec says otherwise, as records of standardised tokens."""

    name: str
    _most = _FP32_MAX
    """Largest magnitude that it stores."""

    @abstractmethod
    def _record_bytes(self, width: int) -> int:
        """Return the bytes of a token."""

    @abstractmethod
    def _encode(self, standard: torch.Tensor) -> torch.Tensor:
        """Shape: (B, T, D), double, standardised -> (B, T, record bytes), uint8."""

    @abstractmethod
    def decode(self, stored: torch.Tensor) -> torch.Tensor:
        """Return floating point features on the device of `stored`. Shape: (B, T, D).

        Standardised ones in single precision, not in half: the LayerNorm that follows widens its
        input, so that half would be one more pass over the batch, and one more rounding.
        """

    def layout(self, row_shape: tuple[int, int]) -> StoredRow:
        """Return how a (T, D) row is stored."""
        num_tokens, width = row_shape
        # Not compressed: an entropy coder would save under a fifth, and slow reading.
        shape = (num_tokens, self._record_bytes(width))
        return StoredRow(row_shape=shape, dtype="uint8", compressed=False)

    def target(self, features: torch.Tensor) -> torch.Tensor:
        """Return what `decode` would return if nothing were lost."""
        from .quantize import standardise

        return standardise(features)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Return the stored form of float32 features. Shape: (B, T, D) -> (B, T, ...).

        Raises:
            TeacherError: they are not finite, or beyond what is stored.
        """
        stored, largest = self.begin_encoding(features)
        self.require_held(float(largest))
        return stored

    def begin_encoding(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stored form, and the largest magnitude, for `require_held` to look at.

        A GPU may not have got to either: reading a value waits for it, and `encode` does at once.
        """
        return self._encode(self.target(features)), largest_magnitude(features)

    def require_held(self, largest: float) -> None:
        """Check that a magnitude is one that is stored.

        Raises:
            TeacherError: it is not.
        """
        if not largest <= self._most:
            raise TeacherError(
                f"a teacher feature is {largest}, beyond what {self.name} holds "
                f"({self._most:.5g}); check the teacher's weights and precision"
            )


class Fp16Codec(FeatureCodec):
    """Half precision, as it is, for entropy coding gains nothing.

    Exact against the official run: under its mixed precision the image residual stream is fp16.
    """

    name = "fp16"
    _most = _FP16_MAX

    def _record_bytes(self, width: int) -> int:
        return 2 * width

    def layout(self, row_shape: tuple[int, int]) -> StoredRow:
        """Return how a (T, D) row is stored."""
        return StoredRow(row_shape=row_shape, dtype="float16", compressed=False)

    def target(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return features

    def _encode(self, standard: torch.Tensor) -> torch.Tensor:
        return standard.half()

    def decode(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the features as they are; heads widen them when they normalise."""
        return stored


class Int8Codec(FeatureCodec):
    """Eight bits a value: cosine 0.9999 and more, in half of fp16's bytes."""

    name = "int8"

    def _record_bytes(self, width: int) -> int:
        return width + _HEAD_BYTES

    def _encode(self, standard: torch.Tensor) -> torch.Tensor:
        from .quantize import encode_int8

        return encode_int8(standard)

    def decode(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the standardised tokens."""
        from .quantize import decode_int8

        return decode_int8(stored)


class Int4Codec(FeatureCodec):
    """Four bits a value: cosine 0.995, in a quarter of fp16's bytes."""

    name = "int4"

    def _record_bytes(self, width: int) -> int:
        if width % 2 or width <= _NUM_OUTLIERS:
            raise UsageError(f"codec int4 packs pairs of values; a token of {width} has none")
        return width // 2 + _HEAD_BYTES

    def _encode(self, standard: torch.Tensor) -> torch.Tensor:
        from .quantize import encode_int4

        return encode_int4(standard)

    def decode(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the standardised tokens."""
        from .quantize import decode_int4

        return decode_int4(stored)


class KltCodec(FeatureCodec):
    """Transform coding, in as many bytes as are asked for; see `klt`."""

    def __init__(self, record_bytes: int, table: npt.NDArray[np.float32] | None) -> None:
        self.name = f"klt:{record_bytes}"
        self.record_bytes, self._table = record_bytes, table
        self._ready: dict[torch.device, KltTable] = {}

    def _record_bytes(self, width: int) -> int:
        most = width * klt.MAX_BITS // 8
        if not 1 <= self.record_bytes <= most:
            raise UsageError(
                f"codec {self.name} does not fit tokens of {width}; pass klt:1 to klt:{most}"
            )
        return self.record_bytes

    def _encode(self, standard: torch.Tensor) -> torch.Tensor:
        return self._on(standard).encode(standard)

    def decode(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the standardised tokens."""
        return self._on(stored).decode(stored)

    def _on(self, tensor: torch.Tensor) -> KltTable:
        assert self._table is not None, "a klt codec needs the table of its array"
        if tensor.device not in self._ready:
            num_tokens = tensor.shape[-2]
            self._ready[tensor.device] = KltTable(
                self._table, num_tokens, self.record_bytes, tensor.device
            )
        return self._ready[tensor.device]


def largest_magnitude(features: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of features, NaN if one is. Shape: (...) -> ()."""
    if not features.numel():
        return features.new_zeros(())
    # One pass and nothing of the features' size; either is NaN where a feature is.
    least, largest = features.aminmax()
    return largest.maximum(-least)


_FIXED_CODECS = {codec.name: codec for codec in (Fp16Codec(), Int8Codec(), Int4Codec())}


def feature_codec(codec: Codec, table: npt.NDArray[np.float32] | None = None) -> FeatureCodec:
    """Return what encodes and decodes by a codec.

    Args:
        codec: Which.
        table: Of the image array, for ``klt``; without one only its layout is known.
    """
    if codec.kind == "klt":
        return KltCodec(codec.record_bytes, table)
    return _FIXED_CODECS[codec.kind]


def pixel_layout() -> StoredRow:
    """Return how a view is stored: filtered planes, zstd."""
    height, width, channels = VIEW_SHAPE
    return StoredRow(row_shape=(channels, height, width), dtype="uint8", compressed=True)


def filter_pixels(views: Pixels) -> Pixels:
    """Filter views so that zstd compresses them well; lossless, modulo 256.

    Green is subtracted from red and blue, the channels become planes, and each plane becomes the
    differences along both axes. Word crops then take 2.4 KB (MJSynth) to 5.4 KB (IIIT5K). The
    inverse is two running sums.

    Shape: (B, 32, 128, 3) -> (B, 3, 32, 128), uint8.
    """
    planes = views.transpose(0, 3, 1, 2).copy()
    planes[:, 0::2] -= planes[:, 1:2]
    planes[:, :, 1:] -= planes[:, :, :-1].copy()
    planes[:, :, :, 1:] -= planes[:, :, :, :-1].copy()
    return planes


def unfilter_pixels(stored: torch.Tensor) -> torch.Tensor:
    """Invert `filter_pixels`. Shape: (B, 3, 32, 128) -> (B, 32, 128, 3), uint8."""
    import torch

    # Sums of bytes wrap as the filter's differences do, and move a quarter of what int32 moves.
    planes = stored.cumsum(3, dtype=torch.uint8).cumsum(2, dtype=torch.uint8)
    # A slice, because on a GPU a list of indexes is copied there, and the host waits for that.
    planes[:, 0::2] += planes[:, 1:2]
    return planes.permute(0, 2, 3, 1)


_GRAM_ROWS = 64
"""Rows whose tokens are compared with one another: about a batch, and of a size to hold."""


def measure_fidelity(features: torch.Tensor, decoded: torch.Tensor) -> Mapping[str, float]:
    """Compare an image array with what its codec keeps of it.

    Shape: (B, T, D) both, any float type.

    Returns:
        ``cosine_p50`` and ``cosine_p01``: median and first percentile, over tokens, of the cosine
        after the mean of each position was removed; ``gram_l1``: mean absolute difference of the
        two matrices of cosines between tokens of the same 64 rows, which is what LCL's intra term
        sees (CLIP-OCR Eq. 5); ``max_abs``: the largest absolute error.
    """
    # In double precision, and rounded: the last bits of a sum depend on how many threads share it,
    # and a unit's record must come out the same on every machine.
    features, decoded = features.double(), decoded.double()
    mean = features.mean(dim=0)
    a, b = (features - mean).flatten(0, 1), (decoded - mean).flatten(0, 1)
    norms = a.norm(dim=1) * b.norm(dim=1)
    # Positions whose features never vary have nothing left after centring; they count as kept.
    cosine = ((a * b).sum(dim=1) / norms).nan_to_num(1.0)
    quantiles = cosine.quantile(cosine.new_tensor([0.01, 0.5]))
    batches = [slice(at, at + _GRAM_ROWS) for at in range(0, len(features), _GRAM_ROWS)]
    differences = [(_gram(features[rows]) - _gram(decoded[rows])).abs() for rows in batches]
    gram_l1 = sum(float(d.sum()) for d in differences) / sum(d.numel() for d in differences)
    return {
        "cosine_p50": round(float(quantiles[1]), 9),
        "cosine_p01": round(float(quantiles[0]), 9),
        "gram_l1": float(f"{gram_l1:.6g}"),
        "max_abs": float(f"{float((features - decoded).abs().amax()):.6g}"),
    }


def _gram(features: torch.Tensor) -> torch.Tensor:
    rows = features.flatten(0, 1)
    rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-7)
    gram: torch.Tensor = rows @ rows.T
    return gram
