"""Attention, and the blocks of the encoder.

Shapes: B batch, S source tokens, L positions that gather from them, D width, H heads.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENCODER_NORM_EPS = 1e-6
"""A ViT's, as against PyTorch's 1e-5, which the decoder keeps."""


class KeysValues(NamedTuple):
    """Projected keys and values of one attention, ready to be attended to."""

    keys_BHSD: Tensor
    values_BHSD: Tensor

    def extended(self, more: KeysValues) -> KeysValues:
        """Return these followed by `more` along the sequence."""
        return KeysValues(*(torch.cat(pair, dim=2) for pair in zip(self, more, strict=True)))

    def contiguous(self) -> KeysValues:
        """Return these in memory of their own, apart from the projection that they are parts of."""
        return KeysValues(*(x.contiguous() for x in self))

    def of_rows(self, rows: Tensor) -> KeysValues:
        """Return those of some rows of the batch. Shape of `rows`: (R,)."""
        return KeysValues(*(x[rows] for x in self))


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be projected once and used many times."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def project(self, source_BSD: Tensor) -> KeysValues:
        """Project a source into keys and values. Shape: (B, S, D) -> two of (B, H, S, D / H)."""
        keys_BSD, values_BSD = self.key_value(source_BSD).chunk(2, dim=-1)
        return KeysValues(
            split_heads(keys_BSD, self.num_heads), split_heads(values_BSD, self.num_heads)
        )

    def forward(self, x_BLD: Tensor, source: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Let each position of x gather from the source positions where `mask` is true.

        Shape: (B, L, D) -> (B, L, D).
        """
        attended_BHLD = F.scaled_dot_product_attention(
            split_heads(self.query(x_BLD), self.num_heads),
            *source,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out(merge_heads(attended_BHLD))
        return out

    def weights(self, x_BLD: Tensor, source: KeysValues) -> Tensor:
        """Return how much each position of x gathers from each of the source, mean over heads.

        `forward` weighs without ever having them. Shape: (B, L, D) -> (B, L, S).
        """
        queries_BHLD = split_heads(self.query(x_BLD), self.num_heads)
        keys_BHDS = source.keys_BHSD.transpose(-2, -1)
        products_BHLS = queries_BHLD @ keys_BHDS / math.sqrt(queries_BHLD.shape[-1])
        return products_BHLS.softmax(dim=-1).mean(dim=1)


class SelfAttention(nn.Module):
    """Multi-head attention of a whole sequence to itself, projected by one packed matrix."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Let every token gather from all. Shape: (B, S, D) -> (B, S, D)."""
        queries_BSD, keys_BSD, values_BSD = self.qkv(x_BSD).chunk(3, dim=-1)
        attended_BHSD = F.scaled_dot_product_attention(
            split_heads(queries_BSD, self.num_heads),
            split_heads(keys_BSD, self.num_heads),
            split_heads(values_BSD, self.num_heads),
        )
        out: Tensor = self.proj(merge_heads(attended_BHSD))
        return out


class PatchEmbedding(nn.Module):
    """Project each patch of an image, row after row of patches.

    That is a convolution whose stride is its kernel, and ``proj`` is made and named as one. But it
    is computed as a matrix product, because torch.compile on a CPU cannot differentiate a
    convolution of no images, which is what a process may get from an epoch's last batch.
    """

    def __init__(self, width: int, patch_height_px: int, patch_width_px: int) -> None:
        super().__init__()
        patch_px = (patch_height_px, patch_width_px)
        self.proj = nn.Conv2d(3, width, kernel_size=patch_px, stride=patch_px)

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches. Shape: (B, 3, height, width in pixels) -> (B, S - 1, D)."""
        patch_height_px, patch_width_px = self.proj.kernel_size
        batch, channels, height_px, width_px = images.shape
        rows, columns = height_px // patch_height_px, width_px // patch_width_px
        cut = images.reshape(batch, channels, rows, patch_height_px, columns, patch_width_px)
        patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(start_dim=3).flatten(1, 2)
        return F.linear(patches, self.proj.weight.flatten(start_dim=1), self.proj.bias)


class EncoderBlock(nn.Module):
    """One pre-LN block of a ViT, without dropout; its parameters have timm's names."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=ENCODER_NORM_EPS)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=ENCODER_NORM_EPS)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, mlp_ratio * width),
                act=nn.GELU(),
                fc2=nn.Linear(mlp_ratio * width, width),
            )
        )

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Advance every token by one block. Shape: (B, S, D) -> (B, S, D)."""
        x = x_BSD + self.attn(self.norm1(x_BSD))
        advanced_BSD: Tensor = x + self.mlp(self.norm2(x))
        return advanced_BSD


def split_heads(x_BLD: Tensor, num_heads: int) -> Tensor:
    """Give each head its part of the width. Shape: (B, L, D) -> (B, H, L, D / H)."""
    batch, length, width = x_BLD.shape
    # Every size is spelled out: a -1 is ambiguous to PyTorch if there are no rows.
    return x_BLD.view(batch, length, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x_BHLD: Tensor) -> Tensor:
    """Undo `split_heads`. Shape: (B, H, L, D / H) -> (B, L, D)."""
    return x_BHLD.transpose(1, 2).flatten(start_dim=2)
