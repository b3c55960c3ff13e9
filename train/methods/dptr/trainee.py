"""DPTR's pre-training: what CLIP says of a label stands in for what an encoder says of a picture.

Official code: ``openrec/modeling/decoders/dptr_parseq_clip_b_decoder.py``, ``training_step``.

Shapes: B batch, M memory tokens, D teacher width, T tokens of a natural image, L label positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ....shared.cache.names import EOT, LN_FINAL
from ....shared.errors import UsageError
from ...data.batch import Batch
from ...models.autoregressive import write
from ...models.decoder import DecoderPart
from ...models.orders import draw_orders
from ...models.tokenizer import LabelTokenizer
from ..base import Shapes
from ..recognition import recognition_loss
from ..trainee import Trainee
from .perturbation import draw_places
from .settings import Dptr


class DptrTrainee(Trainee):
    """A decoder that reads prompts' features, perturbed by those of natural images."""

    recogniser = None
    part: DecoderPart
    term_names = ("recognition",)

    def __init__(self, method: Dptr, tokenizer: LabelTokenizer, shapes: Shapes) -> None:
        """Build it with random weights.

        Raises:
            UsageError: the teacher's features cannot be read together.
        """
        super().__init__()
        self.method = method
        (joint_width,), (num_tokens, width) = shapes.text[EOT], shapes.text[LN_FINAL]
        self.num_memory = 1 + num_tokens
        if joint_width != width:
            raise UsageError(
                f"the teacher's projected EOT has {joint_width} values, its tokens {width}; method "
                f"{method.name} reads them side by side, so choose a teacher with equal widths, "
                "such as ViT-B-16"
            )
        if shapes.pool is not None:
            self._require_pool(shapes.pool, width)
        self.part = method.part(tokenizer)
        of_decoder = method.decoder.decoder_width
        self.to_memory = nn.Identity() if width == of_decoder else nn.Linear(width, of_decoder)
        if width != of_decoder:
            self.notes = (
                f"text features of {width} values are projected to decoder_width {of_decoder}",
            )

    def _require_pool(self, pool: tuple[int, int], width: int) -> None:
        if pool[1] != width:
            raise UsageError(
                f"the pool's tokens have {pool[1]} values, the text features {width}; pass "
                "--noise-ratio 0"
            )
        if pool[0] < self.num_memory:
            raise UsageError(
                f"the pool's images have {pool[0]} tokens, the text features {self.num_memory}; "
                "pass --noise-ratio 0, or build the cache with a teacher of smaller patches"
            )
        if self.method.perturbation == "crop" and math.isqrt(pool[0] - 1) ** 2 < self.num_memory:
            raise UsageError(
                f"no crop of an image of {pool[0]} tokens has the {self.num_memory} of the text "
                "features; pass --perturbation tokens"
            )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss over all orders."""
        memory_BMD = self._memory(batch)
        if batch.pool is not None:
            places_M = draw_places(self.method.perturbation, batch.pool.shape[1], self.num_memory)
            memory_BMD = perturbed(memory_BMD, batch.pool, places_M, self.method.noise_ratio)
        orders_KP = draw_orders(batch.num_positions - 1, self.method.decoder.permutations)
        _, logits, targets = self.part.decoder(
            self.to_memory(memory_BMD), batch.token_ids, orders_KP
        )
        return {"recognition": recognition_loss(logits, targets)}

    def read(self, batch: Batch) -> list[str]:
        """Return the labels that the decoder reads in their features, unperturbed."""
        decoder = self.part.decoder
        with torch.no_grad():
            state = decoder.begin(self.to_memory(self._memory(batch)))
            return decoder.tokenizer.decode(write(decoder, state).float().softmax(dim=-1))[0]

    def compilable(self) -> Sequence[nn.Module]:
        """Return the decoder, unless its memory is itself learned.

        torch.compile warns of every input of a compiled module that has gradients of its own.
        """
        return (self.part.decoder,) if isinstance(self.to_memory, nn.Identity) else ()

    @staticmethod
    def _memory(batch: Batch) -> Tensor:
        """Return the pseudo-visual memory: the projected EOT, then all tokens. Shape: (B, M, D)."""
        # Each by itself, because a CPU's autocast cannot join tensors in fp16.
        return torch.cat([batch.text[EOT][:, None].float(), batch.text[LN_FINAL].float()], dim=1)


def perturbed(memory_BMD: Tensor, pool_BTD: Tensor, places_M: Tensor, ratio: float) -> Tensor:
    """Return the memory with some tokens of natural images added, the same places for all rows."""
    return memory_BMD + ratio * pool_BTD[:, places_M.to(pool_BTD.device)].to(memory_BMD.dtype)
