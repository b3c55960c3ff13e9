"""The decoder: four layers of two streams, CLIP-OCR's (``strhub/models/baseseq``).

It is PARSeq's without permutations. *Content* is the label so far: token embeddings plus positions,
computed once and never updated. *Queries* are one learned vector per label position; layer by layer
they read the content before their position, then the image. As queries never attend to one another,
decoding one more character costs one query, and the keys and values of content and image are kept.

Shapes: B batch, S image tokens, D width, L label positions (characters of the longest label, plus
EOS), C characters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...shared.errors import UsageError
from .attention import Attention, KeysValues, initialize
from .autoregressive import DecoderState
from .config import NUM_STAGES, StudentSize
from .tokenizer import LabelTokenizer


class DecoderLayer(nn.Module):
    """One pre-LN layer of the query stream: content attention, image attention, feed-forward."""

    def __init__(self, size: StudentSize) -> None:
        super().__init__()
        width, dropout = size.width, size.dropout
        self.query_norm = nn.LayerNorm(width)
        self.content_norm = nn.LayerNorm(width)
        self.content_attention = Attention(width, size.decoder_heads, dropout)
        self.image_norm = nn.LayerNorm(width)
        self.image_attention = Attention(width, size.decoder_heads, dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, size.mlp_ratio * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(size.mlp_ratio * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def project_content(self, content_BLD: Tensor) -> KeysValues:
        """Project the static content stream for this layer. Shape: (B, L, D)."""
        return self.content_attention.project(self.content_norm(content_BLD))

    def project_memory(self, memory_BSD: Tensor) -> KeysValues:
        """Project the image memory, which the encoder has normalised. Shape: (B, S, D)."""
        return self.image_attention.project(memory_BSD)

    def forward(
        self, query_BLD: Tensor, content: KeysValues, memory: KeysValues, mask: Tensor | None = None
    ) -> Tensor:
        """Advance the queries by one layer. `mask` is true where a query may read content.

        Shape: (B, L, D) -> (B, L, D).
        """
        x = query_BLD
        x = x + self.dropout(self.content_attention(self.query_norm(x), content, mask))
        x = x + self.dropout(self.image_attention(self.image_norm(x), memory))
        advanced_BLD: Tensor = x + self.dropout(self.mlp(x))
        return advanced_BLD


class Decoder(nn.Module):
    """Predicts each character from the image and the characters before it."""

    def __init__(self, size: StudentSize, tokenizer: LabelTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(NUM_STAGES))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, tokenizer.num_classes)
        self.embedding = nn.Embedding(tokenizer.num_tokens, size.width)
        self.positions = nn.Parameter(torch.empty(1, tokenizer.max_label_length + 1, size.width))
        self.dropout = nn.Dropout(size.dropout)
        self.apply(initialize)
        self._begin_alike()
        nn.init.trunc_normal_(self.positions, std=0.02)

    @torch.no_grad()
    def _begin_alike(self) -> None:
        """Let all layers begin with the same query, key and value projections.

        The official layers are clones of one, and the official initialiser passes these over.
        """
        first, *others = self._layers()
        for layer in others:
            for name in ("content_attention", "image_attention"):
                ours, theirs = getattr(layer, name), getattr(first, name)
                ours.query.weight.copy_(theirs.query.weight)
                ours.key_value.weight.copy_(theirs.key_value.weight)

    def forward(
        self, memory_BSD: Tensor, token_ids_BL: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Predict each character from the image and the true characters before it.

        Args:
            memory_BSD: The image. Shape: (B, S, D).
            token_ids_BL: From `LabelTokenizer.encode`, EOS included. Shape: (B, L + 1).

        Returns:
            Each layer's queries through the one final LayerNorm, Shape: (B, L, D) each, and the
            logits, Shape: (B, L, C + 1).

        Raises:
            UsageError: a label is longer than the tokenizer's longest.
        """
        inputs_BL = token_ids_BL[:, :-1]
        num_positions = inputs_BL.shape[1]
        if num_positions > self.positions.shape[1]:
            raise UsageError(
                f"a label has {num_positions - 1} characters, "
                f"this student reads at most {self.tokenizer.max_label_length}"
            )
        content_BLD = self.dropout(self.embed(inputs_BL))
        query_BLD = self.dropout(self.positions[:, :num_positions].expand(len(memory_BSD), -1, -1))
        mask = self._content_mask(inputs_BL)
        stages = []
        for layer in self._layers():
            content = layer.project_content(content_BLD)
            memory = layer.project_memory(memory_BSD)
            query_BLD = layer(query_BLD, content, memory, mask)
            stages.append(self.norm(query_BLD))
        return tuple(stages), self.head(stages[-1])

    def begin(self, memory_BSD: Tensor) -> DecoderState:
        """Return the state before the first position. Shape: (B, S, D)."""
        # Every step reads them, so it pays to move them together first.
        memories = (layer.project_memory(memory_BSD).contiguous() for layer in self._layers())
        return DecoderState(memories=tuple(memories))

    def step(self, tokens_B: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode one position; see `AutoregressiveRecogniser.step`."""
        position = state.num_tokens
        token_BLD = self.embed(tokens_B[:, None], position)
        layers = self._layers()
        state = state.extended([layer.project_content(token_BLD) for layer in layers])
        query_BLD = self.positions[:, position : position + 1].expand(tokens_B.shape[0], -1, -1)
        for layer, content, memory in zip(layers, state.contents, state.memories, strict=True):
            query_BLD = layer(query_BLD, content, memory)
        logits_BLC: Tensor = self.head(self.norm(query_BLD))
        return logits_BLC[:, 0], state

    @torch.no_grad()
    def image_attention(self, memory_BSD: Tensor, token_ids_BL: Tensor) -> Tensor:
        """Return how much the last layer reads each image token at each position, mean over heads.

        Args:
            memory_BSD: The image. Shape: (B, S, D).
            token_ids_BL: What was read in it, from `LabelTokenizer.encode`. Shape: (B, L + 1).

        Returns:
            Weights, whose sum over the image tokens is 1. Shape: (B, L, S).
        """
        attention = self._layers()[-1].image_attention
        inputs: list[tuple[Tensor, KeysValues]] = []
        with attention.register_forward_pre_hook(lambda _, args: inputs.append(args)):
            self(memory_BSD, token_ids_BL)
        return attention.weights(*inputs[0])

    def embed(self, token_ids_BL: Tensor, position: int = 0) -> Tensor:
        """Embed tokens that stand at `position` and after. BOS, at 0, gets no position.

        Shape: (B, L) -> (B, L, D).
        """
        content_positions = F.pad(self.positions, (0, 0, 1, 0))
        end = position + token_ids_BL.shape[1]
        scale = math.sqrt(self.embedding.embedding_dim)
        embedded: Tensor = scale * self.embedding(token_ids_BL)
        return embedded + content_positions[:, position:end]

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def _content_mask(self, token_ids_BL: Tensor) -> Tensor:
        """Allow a query BOS and the characters before it, not EOS or PAD. Shape: (B, 1, L, L)."""
        num_positions = token_ids_BL.shape[1]
        is_key_BL = (token_ids_BL != self.tokenizer.pad_id) & (
            token_ids_BL != self.tokenizer.eos_id
        )
        causal_LL = token_ids_BL.new_ones(num_positions, num_positions, dtype=torch.bool).tril()
        return causal_LL & is_key_BL[:, None, None, :]
