"""CLIP-OCR's student: an encoder in four stages, and an autoregressive decoder in four layers.

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
from .decoder import Decoder
from .encoder import Encoder
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
    """Shape: (B, L, C + 1)."""


class Student(AutoregressiveRecogniser):
    """A recogniser that shows its stages while it trains."""

    token_axes: Mapping[str, int] = {
        "decoder.embedding.weight": 0,
        "decoder.head.weight": 0,
        "decoder.head.bias": 0,
    }
    position_axes: Mapping[str, int] = {"decoder.positions": 1}

    def __init__(self, config: StudentConfig, tokenizer: LabelTokenizer) -> None:
        """Build a student with random weights.

        Raises:
            UsageError: the config's encoder cannot be one.
        """
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.encoder = Encoder(config)
        encoder_width = self.encoder.stage_shapes[-1][1]
        self.to_memory = (
            nn.Identity()
            if encoder_width == config.size.width
            else nn.Linear(encoder_width, config.size.width)
        )
        self.decoder = Decoder(config.size, tokenizer)

    def forward(self, images: Tensor, token_ids_BL: Tensor) -> StudentOutput:
        """Predict each character from the image and the true characters before it.

        Args:
            images: Normalised images. Shape: (B, 3, 32, 128).
            token_ids_BL: From `LabelTokenizer.encode`, EOS included. Shape: (B, L + 1).
        """
        encoder_stages = self.encoder(images)
        decoder_stages, logits = self.decoder(self.to_memory(encoder_stages[-1]), token_ids_BL)
        return StudentOutput(
            encoder_stages=encoder_stages,
            summary=self.encoder.summary(encoder_stages[-1]),
            decoder_stages=decoder_stages,
            logits=logits,
        )

    def encode(self, images: Tensor) -> Tensor:
        """Return the memory that decoding reads. Shape: (B, 3, 32, 128) -> (B, S, D)."""
        memory_BSD: Tensor = self.to_memory(self.encoder(images)[-1])
        return memory_BSD

    def begin(self, images: Tensor) -> DecoderState:
        """Return the state before the first position. Shape of images: (B, 3, 32, 128)."""
        return self.decoder.begin(self.encode(images))

    def step(self, tokens_B: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode one position; see `AutoregressiveRecogniser.step`."""
        return self.decoder.step(tokens_B, state)

    @torch.no_grad()
    def image_attention(self, images: Tensor, token_ids_BL: Tensor) -> ImageAttention:
        """Return how much the last decoder layer read each place of the image, mean over heads."""
        weights_BLS = self.decoder.image_attention(self.encode(images), token_ids_BL)
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
        """Return the sizes and the encoder; dropout has no weights."""
        sizes = asdict(self.config.size)
        del sizes["dropout"]
        return {**sizes, "encoder": self.config.encoder}
