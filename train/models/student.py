"""CLIP-OCR's student: an encoder in four stages, and an autoregressive decoder.

Shapes: B batch, S student image tokens, D width, L label positions (characters of the longest
label, plus EOS), C characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .autoregressive import AutoregressiveRecogniser, DecoderState
from .config import StudentConfig
from .decoder import Decoder, DecoderPart
from .encoder import Encoder
from .merge import FeatureMergeUnit
from .orders import draw_orders
from .recogniser import ImageAttention
from .tokenizer import LabelTokenizer


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """What one training forward yields: every stage a teacher may look at, and the prediction."""

    encoder_stages: tuple[Tensor, ...]
    """Raw for the first three stages, through a LayerNorm for the last. Shape: (B, S, D) each, S
    and D those of `Encoder.stage_shapes`."""
    summary: Tensor
    """What stands for the whole image: the last stage's class token, or the mean of its tokens.
    Shape: (B, D)."""
    decoder_stages: tuple[Tensor, ...]
    """Each decoder layer's queries through the one final LayerNorm. Shape: (B, L, D) each."""
    logits: Tensor
    """Of K orders; a causal decoder has one. Shape: (B * K, L, C + 1)."""
    targets: Tensor
    """What they should say: token ids, PAD where nothing is asked. Shape: (B * K, L)."""


class Student(AutoregressiveRecogniser):
    """A recogniser that shows its stages while it trains."""

    token_axes = DecoderPart.token_axes
    position_axes: Mapping[str, int] = {**DecoderPart.position_axes, "merge.queries": 1}

    def __init__(self, config: StudentConfig, tokenizer: LabelTokenizer) -> None:
        """Build a student with random weights.

        Raises:
            UsageError: the config's encoder cannot be one.
        """
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.encoder = Encoder(config)
        encoder_width, of_decoder = self.encoder.stage_shapes[-1][1], config.decoder_config
        self.to_memory = (
            nn.Identity()
            if encoder_width == of_decoder.width
            else nn.Linear(encoder_width, of_decoder.width)
        )
        self.merge = (
            FeatureMergeUnit(of_decoder, num_queries=tokenizer.max_label_length + 1)
            if config.merge == "fmu"
            else None
        )
        self.decoder = Decoder(of_decoder, tokenizer)
        self.refines = of_decoder.refines

    def forward(
        self, images: Tensor, token_ids_BL: Tensor, orders_KP: Tensor | None = None
    ) -> StudentOutput:
        """Predict each character from the image and the true characters that are known.

        Args:
            images: Normalised images. Shape: (B, 3, 32, 128).
            token_ids_BL: From `LabelTokenizer.encode`, EOS included. Shape: (B, L + 1).
            orders_KP: From `draw_orders`, for `token_ids_BL`; None: from left to right.
        """
        encoder_stages = self.encoder(images)
        memory_BSD = self._memory(encoder_stages[-1])
        decoder_stages, logits, targets = self.decoder(memory_BSD, token_ids_BL, orders_KP)
        return StudentOutput(
            encoder_stages=encoder_stages,
            summary=self.encoder.summary(encoder_stages[-1]),
            decoder_stages=decoder_stages,
            logits=logits,
            targets=targets,
        )

    def draw_orders(self, num_positions: int) -> Tensor | None:
        """Draw the orders of a step that learns labels of `num_positions`, EOS counted.

        None of a causal decoder, which knows one.
        """
        if self.config.decoder != "permuted":
            return None
        return draw_orders(num_positions - 1, self.config.permuted.permutations)

    def _memory(self, last_stage_BSD: Tensor) -> Tensor:
        memory_BSD: Tensor = self.to_memory(last_stage_BSD)
        return memory_BSD if self.merge is None else self.merge(memory_BSD)

    def encode(self, images: Tensor) -> Tensor:
        """Return the memory that decoding reads. Shape: (B, 3, 32, 128) -> (B, S, D)."""
        return self._memory(self.encoder(images)[-1])

    def begin(self, images: Tensor) -> DecoderState:
        """Return the state before the first position. Shape of images: (B, 3, 32, 128)."""
        return self.decoder.begin(self.encode(images))

    def step(self, tokens_B: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode one position; see `Writer`."""
        return self.decoder.step(tokens_B, state)

    def refine(self, tokens_BL: Tensor, state: DecoderState) -> Tensor:
        """Predict every position anew; see `Writer`."""
        return self.decoder.refine(tokens_BL, state)

    @torch.no_grad()
    def image_attention(self, images: Tensor, token_ids_BL: Tensor) -> ImageAttention:
        """Return how much the last decoder layer read each place of the image, mean over heads."""
        memory_BSD = self.to_memory(self.encoder(images)[-1])
        if self.merge is None:
            weights_BLS = self.decoder.image_attention(memory_BSD, token_ids_BL)
        else:
            of_queries_BLQ = self.decoder.image_attention(self.merge(memory_BSD), token_ids_BL)
            weights_BLS = of_queries_BLQ @ self.merge.weights(memory_BSD)
        first_place = self.encoder.num_prefix_tokens
        batch, length, _ = weights_BLS.shape
        return ImageAttention(
            places=weights_BLS[..., first_place:].reshape(batch, length, *self.encoder.grid),
            elsewhere=weights_BLS[..., :first_place].sum(dim=-1),
        )

    def load_pretrained(self) -> None:
        """Load the encoder's published weights, if the config names any."""
        self.encoder.load_weights()

    def architecture(self) -> dict[str, Any]:
        """Return sizes, encoder and decoder; dropout has no weights."""
        config = self.config
        sizes = asdict(config.size)
        del sizes["dropout"]
        of_decoder = config.decoder_config.architecture()
        return {**sizes, "encoder": config.encoder, **of_decoder, "merge": config.merge}
