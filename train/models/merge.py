"""Feature Merge Unit of DPTR: few queries gather from the image what a decoder will read.

Official ``FMU`` of ``dptr_parseq_clip_b_decoder.py``. There the queries are memory that nobody
initialises; here they begin with standard deviation 1.

Shapes: B batch, S image tokens, D width, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Attention, feed_forward, initialize
from .config import DecoderConfig


class FeatureMergeUnit(nn.Module):
    """Cross-attention of learned queries to the image, then a feed-forward network."""

    def __init__(self, config: DecoderConfig, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, num_queries, config.width))
        self.attention = Attention(config.width, config.heads, config.dropout)
        self.mlp = feed_forward(config.width, config.mlp_ratio, config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.apply(initialize)
        # Nothing normalises them before attention: smaller ones would all gather the same.
        nn.init.trunc_normal_(self.queries)

    def forward(self, memory_BSD: Tensor) -> Tensor:
        """Return the memory that the decoder reads. Shape: (B, S, D) -> (B, Q, D)."""
        queries_BQD = self.queries.expand(memory_BSD.shape[0], -1, -1)
        # The official unit does not normalise the queries before attention.
        gathered_BQD = self.attention(queries_BQD, self.attention.project(memory_BSD))
        x = queries_BQD + self.dropout(gathered_BQD)
        merged_BQD: Tensor = x + self.dropout(self.mlp(x))
        return merged_BQD

    def weights(self, memory_BSD: Tensor) -> Tensor:
        """Return how much each query gathers from each image token. Shape: (B, Q, S)."""
        queries_BQD = self.queries.expand(memory_BSD.shape[0], -1, -1)
        return self.attention.weights(queries_BQD, self.attention.project(memory_BSD))
