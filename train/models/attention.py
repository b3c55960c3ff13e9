"""Attention of a decoder: keys and values are projected once and attended to many times.

Shapes: B batch, S source tokens, L positions that gather from them, D width, H heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def feed_forward(width: int, mlp_ratio: int, dropout: float) -> nn.Sequential:
    """Return the network that follows attention in a pre-LN layer. Shape: (..., D) -> (..., D)."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, mlp_ratio * width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(mlp_ratio * width, width),
    )


def split_heads(x_BLD: Tensor, num_heads: int) -> Tensor:
    """Give each head its part of the width. Shape: (B, L, D) -> (B, H, L, D / H)."""
    batch, length, width = x_BLD.shape
    # Every size is spelled out: a -1 is ambiguous to PyTorch if there are no rows.
    return x_BLD.view(batch, length, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x_BHLD: Tensor) -> Tensor:
    """Undo `split_heads`. Shape: (B, H, L, D / H) -> (B, L, D)."""
    return x_BHLD.transpose(1, 2).flatten(start_dim=2)


def initialize(module: nn.Module) -> None:
    """Initialise one module as the official code does; for `nn.Module.apply`."""
    match module:
        case nn.Linear():
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        case nn.Embedding():
            nn.init.trunc_normal_(module.weight, std=0.02)
        case nn.LayerNorm():
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        case Attention():
            # The official initialiser does not know the packed (3D, D) projection inside
            # nn.MultiheadAttention, so that keeps PyTorch's Xavier: std 0.036 for D = 384.
            width = module.query.in_features
            bound = math.sqrt(6 / (3 * width + width))
            nn.init.uniform_(module.query.weight, -bound, bound)
            nn.init.uniform_(module.key_value.weight, -bound, bound)
