"""The decoder: layers of two streams, PARSeq's.

*Content* is the label so far: token embeddings plus positions. *Queries* are one learned vector per
label position; layer by layer they read the content that they may know, then the image. As queries
never attend to one another, decoding one more character costs one query, and the keys and values of
content and image are kept. There are two kinds (`DecoderConfig`):

    causal     CLIP-OCR's (``strhub/models/baseseq``): characters are learned from left to right,
               and content is computed once and never updated
    permuted   PARSeq's and DPTR's: characters are learned in several orders at once (`orders`), and
               content advances from layer to layer as queries do

Shapes: B batch, S image tokens, M tokens of an order, D width, L label positions (characters of the
longest label, plus EOS), P = L + 1 places, C characters, K orders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...shared.errors import UsageError
from .attention import Attention, KeysValues, feed_forward, initialize
from .autoregressive import DecoderState
from .config import DecoderConfig
from .orders import masks_of
from .recogniser import RecogniserPart
from .tokenizer import LabelTokenizer


class DecoderLayer(nn.Module):
    """One pre-LN layer: content attention, image attention, feed-forward."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.query_norm = nn.LayerNorm(width)
        self.content_norm = nn.LayerNorm(width)
        self.content_attention = Attention(width, config.heads, dropout)
        self.image_norm = nn.LayerNorm(width)
        self.image_attention = Attention(width, config.heads, dropout)
        self.mlp = feed_forward(width, config.mlp_ratio, dropout)
        self.dropout = nn.Dropout(dropout)

    def project_content(self, content_BLD: Tensor) -> KeysValues:
        """Project the content stream for this layer. Shape: (B, L, D)."""
        return self.content_attention.project(self.content_norm(content_BLD))

    def project_memory(self, memory_BSD: Tensor) -> KeysValues:
        """Project the image memory, which the encoder has normalised. Shape: (B, S, D)."""
        return self.image_attention.project(memory_BSD)

    def forward(
        self,
        query_BLD: Tensor,
        content: KeysValues,
        memory: KeysValues,
        mask: Tensor | None = None,
        num_orders: int = 1,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Advance the queries by one layer.

        Args:
            query_BLD: Shape: (B * K, L, D), the K of an image side by side.
            content: What they read first, as many.
            memory: What they read then. Of B images.
            mask: True where a query may read content; None: everywhere.
            num_orders: K.
            memory_mask: True where the queries of all orders may read memory; None: everywhere.
                Shape: (K * L, S).

        Returns:
            Shape: (B * K, L, D).
        """
        normed = self.query_norm(query_BLD)
        return self._advance(query_BLD, normed, content, memory, mask, num_orders, memory_mask)

    def advance_content(
        self,
        content_BLD: Tensor,
        content: KeysValues,
        memory: KeysValues,
        mask: Tensor | None = None,
        num_orders: int = 1,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Advance the content by one layer, by the same weights; see `forward`."""
        normed = self.content_norm(content_BLD)
        return self._advance(content_BLD, normed, content, memory, mask, num_orders, memory_mask)

    def _advance(
        self,
        x: Tensor,
        normed: Tensor,
        content: KeysValues,
        memory: KeysValues,
        mask: Tensor | None,
        num_orders: int,
        memory_mask: Tensor | None,
    ) -> Tensor:
        x = x + self.dropout(self.content_attention(normed, content, mask))
        reading = self.image_norm(x)
        if num_orders > 1:
            # All that an image is read for reads it together: its keys are projected once.
            batch, length, width = x.shape
            reading = reading.view(batch // num_orders, num_orders * length, width)
        x = x + self.dropout(self.image_attention(reading, memory, memory_mask).view_as(x))
        advanced_BLD: Tensor = x + self.dropout(self.mlp(x))
        return advanced_BLD


class Decoder(nn.Module):
    """Predicts each character from the image and the characters that are known."""

    def __init__(self, config: DecoderConfig, tokenizer: LabelTokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.refines = config.refines
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, tokenizer.num_classes)
        self.embedding = nn.Embedding(tokenizer.num_tokens, config.width)
        self.positions = nn.Parameter(torch.empty(1, tokenizer.max_label_length + 1, config.width))
        self.dropout = nn.Dropout(config.dropout)
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
        self,
        memory_BSD: Tensor,
        token_ids_BL: Tensor,
        orders_KP: Tensor | None = None,
        of_orders_BKMD: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Predict each character from the image and the true characters that are known.

        Args:
            memory_BSD: The image. Shape: (B, S, D).
            token_ids_BL: From `LabelTokenizer.encode`, EOS included. Shape: (B, L + 1).
            orders_KP: From `draw_orders`; None: from left to right.
            of_orders_BKMD: What each order reads besides the image. Shape: (B, K, M, D).

        Returns:
            Four layers' queries of the first order through the one final LayerNorm, the last layer
            among them, Shape: (B, L, D) each; the logits, Shape: (B * K, L, C + 1); and what they
            should say, Shape: (B * K, L). From the third order on EOS is not asked for, as in the
            official loss.

        Raises:
            UsageError: a label is longer than the tokenizer's longest.
        """
        inputs_BL, targets_BL = token_ids_BL[:, :-1], token_ids_BL[:, 1:]
        num_positions = inputs_BL.shape[1]
        if num_positions > self.positions.shape[1]:
            raise UsageError(
                f"a label has {num_positions - 1} characters, "
                f"this student reads at most {self.tokenizer.max_label_length}"
            )
        # The EOS is given to no other place: it is not known before the label is.
        is_key_BL = (inputs_BL != self.tokenizer.pad_id) & (inputs_BL != self.tokenizer.eos_id)
        if orders_KP is None:
            causal = inputs_BL.new_ones(1, num_positions, num_positions, dtype=torch.bool).tril()
            masks = causal, causal
        else:
            masks = masks_of(orders_KP.to(inputs_BL.device))
        memory_mask = None
        if of_orders_BKMD is not None:
            memory_mask = _own_memory(of_orders_BKMD, memory_BSD.shape[1], num_positions)
            memory_BSD = torch.cat([memory_BSD, of_orders_BKMD.flatten(1, 2)], dim=1)
        memories = (layer.project_memory(memory_BSD) for layer in self._layers())
        stages = self._read(inputs_BL, is_key_BL, masks, memories, memory_mask)
        logits = self.head(stages[-1])
        num_orders = len(masks[0])
        if num_orders > 1:
            stages = [stage[::num_orders] for stage in stages]
            no_eos_BL = targets_BL.where(targets_BL != self.tokenizer.eos_id, self.tokenizer.pad_id)
            of_orders = [targets_BL if order < 2 else no_eos_BL for order in range(num_orders)]
            targets_BL = torch.stack(of_orders, dim=1).flatten(end_dim=1)
        return tuple(stages), logits, targets_BL

    def begin(self, memory_BSD: Tensor) -> DecoderState:
        """Return the state before the first position. Shape: (B, S, D)."""
        # Every step reads them, so it pays to move them together first.
        memories = (layer.project_memory(memory_BSD).contiguous() for layer in self._layers())
        return DecoderState(memories=tuple(memories))

    def step(self, tokens_B: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode one position; see `Writer.step`."""
        position = state.num_tokens
        content_BLD = self.embed(tokens_B[:, None], position)
        query_BLD = self.positions[:, position : position + 1].expand(tokens_B.shape[0], -1, -1)
        contents = []
        for layer_idx, (layer, memory) in enumerate(
            zip(self._layers(), state.memories, strict=True)
        ):
            content = layer.project_content(content_BLD)
            if state.contents:
                content = state.contents[layer_idx].extended(content)
            contents.append(content)
            query_BLD = layer(query_BLD, content, memory)
            if self._updates_content(layer_idx):
                content_BLD = layer.advance_content(content_BLD, content, memory)
        logits_BLC: Tensor = self.head(self.norm(query_BLD))
        return logits_BLC[:, 0], replace(state, contents=tuple(contents))

    def refine(self, tokens_BL: Tensor, state: DecoderState) -> Tensor:
        """Predict each character from the image and all others that were written.

        Content reads by the same mask as the queries, because in the official code both masks are
        one tensor. So from the second layer on, content has read the character that is asked for.

        Args:
            tokens_BL: The likeliest tokens, written up to EOS at least. Shape: (B, L).
            state: Of `begin`.

        Returns:
            Logits. Shape: (B, L, C + 1).
        """
        bos_B1 = torch.full_like(tokens_BL[:, :1], self.tokenizer.bos_id)
        inputs_BL = torch.cat([bos_B1, tokens_BL[:, :-1]], dim=1)
        is_key_BL = (inputs_BL == self.tokenizer.eos_id).int().cumsum(dim=1) == 0
        length = inputs_BL.shape[1]
        own = torch.ones(length, length, dtype=torch.bool, device=tokens_BL.device)
        cloze = ~(own.triu(1) & own.tril(1))[None]
        stages = self._read(inputs_BL, is_key_BL, (cloze, cloze), state.memories)
        logits_BLC: Tensor = self.head(stages[-1])
        return logits_BLC

    def _read(
        self,
        inputs_BL: Tensor,
        is_key_BL: Tensor,
        masks: tuple[Tensor, Tensor],
        memories: Iterable[KeysValues],
        memory_mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Take all queries through the layers.

        Args:
            inputs_BL: BOS and characters. Shape: (B, L).
            is_key_BL: Which of them may be read at all. Shape: (B, L).
            masks: What content and queries may read of them. Shape: (K, L, L) each.
            memories: The image, projected for each layer.
            memory_mask: What the positions of all orders may read of it. Shape: (K * L, S).

        Returns:
            The queries after each of the four stages. Shape: (B * K, L, D) each.
        """
        num_orders, length, _ = masks[0].shape
        of_content, of_queries = (
            (mask & is_key_BL[:, None, None]).flatten(end_dim=1)[:, None] for mask in masks
        )
        content_BLD = self.embed(inputs_BL)
        query_BLD = self.positions[:, :length].expand(inputs_BL.shape[0], -1, -1)
        if num_orders > 1:
            content_BLD, query_BLD = (
                x.repeat_interleave(num_orders, dim=0) for x in (content_BLD, query_BLD)
            )
        content_BLD, query_BLD = self.dropout(content_BLD), self.dropout(query_BLD)
        stages = []
        for layer_idx, (layer, memory) in enumerate(zip(self._layers(), memories, strict=True)):
            content = layer.project_content(content_BLD)
            query_BLD = layer(query_BLD, content, memory, of_queries, num_orders, memory_mask)
            if self._updates_content(layer_idx):
                content_BLD = layer.advance_content(
                    content_BLD, content, memory, of_content, num_orders, memory_mask
                )
            stages += [self.norm(query_BLD)] * self.config.stage_layers.count(layer_idx + 1)
        return stages

    def _updates_content(self, layer_idx: int) -> bool:
        """Return whether a layer advances the content, which nothing reads after the last."""
        return self.config.updates_content and layer_idx + 1 < len(self.layers)

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
        return attention.weights(*inputs[0][:2])

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


def _own_memory(of_orders_BKMD: Tensor, num_shared: int, num_positions: int) -> Tensor:
    """Let each order read what all share and what is its own. Shape: (K * L, S + K * M)."""
    _, num_orders, num_own, _ = of_orders_BKMD.shape
    orders = torch.arange(num_orders, device=of_orders_BKMD.device)
    readers, read = orders.repeat_interleave(num_positions), orders.repeat_interleave(num_own)
    return F.pad(readers[:, None] == read, (num_shared, 0), value=True)


class DecoderPart(RecogniserPart):
    """A decoder by itself: what a method that has no pictures trains for a recogniser to come."""

    token_axes: Mapping[str, int] = {
        "decoder.embedding.weight": 0,
        "decoder.head.weight": 0,
        "decoder.head.bias": 0,
    }
    position_axes: Mapping[str, int] = {"decoder.positions": 1}

    def __init__(self, config: DecoderConfig, tokenizer: LabelTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.decoder = Decoder(config, tokenizer)

    def architecture(self) -> dict[str, Any]:
        """Return the decoder's sizes."""
        return self.decoder.config.architecture()
