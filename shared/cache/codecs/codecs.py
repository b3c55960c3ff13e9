"""How pixels and teacher features become stored numbers, and back on the training device.

``fp16`` gives back the teacher's numbers. The others, which `quantize` and `klt` explain, give back
each token as a LayerNorm without gain and bias returns it; a second LayerNorm, which is what a
student's heads begin with, makes the two the same but for rounding.

Pixels are filtered in NumPy where views are made. Features are encoded by torch where the teacher
ran, and decoded where the student trains.

Shapes: B rows, T image tokens, D width, H and W height and width of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import TeacherError
from .codec import Codec
from .klt import klt_coders

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class FeatureCodec:
    """Stores an image array."""

    name: str
    most: float
    """Largest magnitude that it stores."""
    target: Callable[[torch.Tensor], torch.Tensor]
    """Float32 features -> what `decode` would return of them if nothing were lost."""
    encode_target: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    """The stored form -> floating point features on its device. Shape: (B, T, ...) -> (B, T, D).

    Standardised ones in single precision, not in half: the LayerNorm that follows widens its
    input, so that half would be one more pass over the batch, and one more rounding.
    """

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
        if not features.numel():
            largest = features.new_zeros(())
        else:
            # One pass and nothing of the features' size; either is NaN where a feature is.
            low, high = features.aminmax()
            largest = high.maximum(-low)
        return self.encode_target(self.target(features)), largest

    def require_held(self, largest: float) -> None:
        """Check that a magnitude is one that is stored.

        Raises:
            TeacherError: it is not.
        """
        if not largest <= self.most:
            raise TeacherError(
                f"a teacher feature is {largest}, beyond what {self.name} holds "
                f"({self.most:.5g}); check the teacher's weights and precision"
            )


def feature_codec(codec: Codec, table: npt.NDArray[np.float32] | None = None) -> FeatureCodec:
    """Return what encodes and decodes by a codec.

    Args:
        codec: Which.
        table: Of the image array, for ``klt``.
    """
    from . import quantize

    if codec.kind == "fp16":
        # Exact against the official run: under its mixed precision the residual stream is fp16.
        return FeatureCodec(
            name="fp16",
            most=65504.0,
            target=lambda features: features,
            encode_target=lambda features: features.half(),
            decode=lambda stored: stored,  # Heads widen them when they normalise.
        )
    if codec.kind == "klt":
        assert table is not None, "a klt codec needs the table of its array"
        encode, decode = klt_coders(table, codec.record_bytes)
    elif codec.kind == "int8":
        encode, decode = quantize.encode_int8, quantize.decode_int8
    else:
        encode, decode = quantize.encode_int4, quantize.decode_int4
    return FeatureCodec(
        name=str(codec),
        most=3.4e38,
        target=quantize.standardise,
        encode_target=encode,
        decode=decode,
    )


def filter_pixels(views: Pixels) -> Pixels:
    """Filter views so that zstd compresses them well; lossless, modulo 256.

    Green is subtracted from red and blue, the channels become planes, and each plane becomes the
    differences along both axes. Word crops then take 2.4 KB (MJSynth) to 5.4 KB (IIIT5K). The
    inverse is two running sums.

    Shape: (B, H, W, 3) -> (B, 3, H, W), uint8.
    """
    planes = views.transpose(0, 3, 1, 2).copy()
    planes[:, 0::2] -= planes[:, 1:2]
    planes[:, :, 1:] -= planes[:, :, :-1].copy()
    planes[:, :, :, 1:] -= planes[:, :, :, :-1].copy()
    return planes


def unfilter_pixels(stored: torch.Tensor) -> torch.Tensor:
    """Invert `filter_pixels`. Shape: (B, 3, H, W) -> (B, H, W, 3), uint8."""
    import torch

    # Sums of bytes wrap as the filter's differences do, and move a quarter of what int32 moves.
    planes = stored.cumsum(3, dtype=torch.uint8).cumsum(2, dtype=torch.uint8)
    # A slice, because on a GPU a list of indexes is copied there, and the host waits for that.
    planes[:, 0::2] += planes[:, 1:2]
    return planes.permute(0, 2, 3, 1)


_GRAM_ROWS, _GRAM_TOKENS = 64, 2048
"""Rows whose tokens are compared with one another: about a batch. Of rows of many tokens fewer,
because a matrix of 64 rows of 197 tokens takes 1.3 GB."""


def measure_fidelity(features: torch.Tensor, decoded: torch.Tensor) -> Mapping[str, float]:
    """Compare an image array with what its codec keeps of it.

    Shape: (B, T, D) both, any float type.

    Returns:
        ``cosine_p50`` and ``cosine_p01``: median and first percentile, over tokens, of the cosine
        after the mean of each position was removed; ``gram_l1``: mean absolute difference of the
        two matrices of cosines between tokens of the same rows, up to 64, which is what LCL's intra
        term sees (CLIP-OCR Eq. 5); ``max_abs``: the largest absolute error.
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
    num_rows = max(1, min(_GRAM_ROWS, _GRAM_TOKENS // features.shape[1]))
    batches = [slice(at, at + num_rows) for at in range(0, len(features), num_rows)]
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
