"""Teacher tokens as a few bits each: what the codecs ``int8`` and ``int4`` do to a token.

Both keep the *standardised* token, as a LayerNorm without gain and bias returns it: the first thing
a student's head does with a teacher token is a LayerNorm, so nothing that is used is lost, and what
is left needs no constants of its own. Its four largest values are kept apart: a transformer may
have a few massive channels, and steps fit for those would leave nothing of the others.

    record    scale (fp16) | 4 places (int16) | 4 values (fp16) | codes
    int8      D codes (int8); value = code * scale / 127
    int4      D / 2 bytes, byte j: code of value 2j in the low four bits, of 2j + 1 in the high
              ones; value = INT4_LEVELS[code] * scale
    both      at the four places the value is the one given there

Records have one size. Numbers are little-endian. All arithmetic of the encoders is double, so that
the same features give the same bytes on every device.

Shapes: B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from .codec import HEAD_BYTES, NUM_OUTLIERS

NORM_EPS = 1e-5
"""Of `torch.nn.LayerNorm`."""

_INT8_MAX = 127

_POSITIVE_LEVELS = (0.128395, 0.388048, 0.656759, 0.94234, 1.256231, 1.618046, 2.069017, 2.73259)
INT4_LEVELS = tuple(-level for level in reversed(_POSITIVE_LEVELS)) + _POSITIVE_LEVELS
"""The sixteen levels that lose least of a Gaussian of unit variance (Lloyd and Max)."""


def standardise(features: torch.Tensor) -> torch.Tensor:
    """Return each token less its mean, by its deviation, in double. Shape: (B, T, D) twice."""
    return torch.nn.functional.layer_norm(features.double(), features.shape[-1:], eps=NORM_EPS)


def encode_int8(standard: torch.Tensor) -> torch.Tensor:
    """Round to steps of a 127th of the fifth-largest value.

    Shape: (B, T, D) -> (B, T, 18 + D), uint8.
    """
    rest, outliers = _set_apart(standard)
    scale = rest.abs().amax(dim=-1, keepdim=True).half()
    codes = rest.div_(_or_one(scale.double() / _INT8_MAX)).round_().clamp_(-_INT8_MAX, _INT8_MAX)
    return _record(scale, outliers, codes.to(torch.int8))


def decode_int8(records: torch.Tensor) -> torch.Tensor:
    """Invert `encode_int8`. Shape: (B, T, 18 + D) -> (B, T, D), float32."""
    scale, places, values = _head(records)
    codes = records[..., HEAD_BYTES:].view(torch.int8)
    return codes.float().mul_(scale / _INT8_MAX).scatter_(-1, places, values)


def encode_int4(standard: torch.Tensor) -> torch.Tensor:
    """Take the nearest of sixteen levels, which are as wide as the values are.

    Not as wide as the largest of them: that would cost 0.005 of the cosine where no value is
    massive, and most of it where a fifth one is.

    Shape: (B, T, D) -> (B, T, 18 + D / 2), uint8.
    """
    rest, outliers = _set_apart(standard)
    num_others = standard.shape[-1] - NUM_OUTLIERS
    scale = (rest.square().sum(dim=-1, keepdim=True) / num_others).sqrt().half()
    middles = _int4_middles(rest.device)
    codes = torch.bucketize(rest.div_(_or_one(scale.double())), middles).to(torch.uint8)
    return _record(scale, outliers, codes[..., 0::2] | codes[..., 1::2] << 4)


def decode_int4(records: torch.Tensor) -> torch.Tensor:
    """Invert `encode_int4`. Shape: (B, T, 18 + D / 2) -> (B, T, D), float32."""
    scale, places, values = _head(records)
    codes = records[..., HEAD_BYTES:]
    pairs = _int4_pairs(records.device)
    features = pairs.index_select(0, codes.flatten().int()).view(torch.float32)
    features = features.view(*codes.shape[:-1], 2 * codes.shape[-1])
    return features.mul_(scale).scatter_(-1, places, values)


@cache
def _int4_middles(device: torch.device) -> torch.Tensor:
    """Return what lies between neighbouring levels, made once per device. Shape: (15,), double."""
    levels = torch.tensor(INT4_LEVELS, dtype=torch.float64, device=device)
    return (levels[1:] + levels[:-1]) / 2


@cache
def _int4_pairs(device: torch.device) -> torch.Tensor:
    """Return both levels of every byte as one number of eight bytes. Shape: (256,), float64.

    On a CPU looking up such numbers is three times as fast as looking up rows of two. Once per
    device, because the host waits for a copy to a GPU.
    """
    levels = torch.tensor(INT4_LEVELS, device=device)
    pairs = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], dim=-1)
    return pairs.view(torch.float64).flatten()


def _set_apart(standard: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the tokens with their largest values at zero, and [places, values] of those."""
    rest, places = standard.clone(), []
    for _ in range(NUM_OUTLIERS):
        # The first of equals, on every device; topk promises no such thing.
        places.append(rest.abs().argmax(dim=-1, keepdim=True))
        rest.scatter_(-1, places[-1], 0.0)
    at = torch.cat(places, dim=-1)
    return rest, [at.to(torch.int16), standard.gather(-1, at).half()]


def _record(
    scale: torch.Tensor, outliers: Sequence[torch.Tensor], codes: torch.Tensor
) -> torch.Tensor:
    parts = (scale, *outliers, codes)
    return torch.cat([part.view(torch.uint8) for part in parts], dim=-1)


def _head(records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scale, places and values. Shape: (B, T, 1), (B, T, 4) twice."""
    middle = 2 + 2 * NUM_OUTLIERS
    return (
        _numbers(records[..., :2], torch.float16).float(),
        _numbers(records[..., 2:middle], torch.int16).long(),
        _numbers(records[..., middle:HEAD_BYTES], torch.float16).float(),
    )


def _numbers(some_bytes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Clone: with one record `.contiguous()` keeps the parent's strides, and `.view(dtype)` fails.
    return some_bytes.clone(memory_format=torch.contiguous_format).view(dtype)


def _or_one(scale: torch.Tensor) -> torch.Tensor:
    """Return `scale`, but 1 where it is 0: of a constant token."""
    return scale.where(scale > 0, 1.0)
