"""The settings of DPTR's pre-training; the defaults are the official code's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ....shared.cache.names import EOT, LN_FINAL, PROMPT, TEMPLATE
from ....shared.options import option
from ...models.config import PermutedDecoder
from ..base import Method, Needs, Shapes, TextNeeds

if TYPE_CHECKING:
    from ...models.decoder import DecoderPart
    from ...models.tokenizer import LabelTokenizer
    from .trainee import DptrTrainee


@dataclass(frozen=True, kw_only=True)
class Dptr(Method):
    """Decoder Pre-training with only Text: a decoder reads CLIP's features of prompts.

    What it leaves is a decoder, which ``train --init RUN --decoder permuted`` takes up.
    """

    name: ClassVar[str] = "dptr"
    summary: ClassVar[str] = "a decoder, pre-trained on text features without any picture"

    decoder: PermutedDecoder = PermutedDecoder()
    template: str = option(
        TEMPLATE,
        help="Sentence around each label, as it was given to cache text or cache labels.",
    )
    noise_ratio: float = option(
        0.1,
        minimum=0,
        help="Weight of the natural images' features added as noise. 0 needs no cache pool.",
    )
    perturbation: str = option(
        "tokens",
        choices=("tokens", "crop"),
        help="Which tokens of an image become noise: any, as in the official code (tokens), or a "
        "rectangle, as in the paper (crop).",
    )
    held_out_share: float = option(
        0.02,
        minimum=0,
        below=1,
        help="Share of the labels to hold out. best.pt is the epoch that reads most of them.",
    )

    @classmethod
    def recipe(cls) -> Mapping[str, Any]:
        """Return the official run's."""
        return {"epochs": 20, "batch_size": 768, "learning_rate": 1.485e-3}

    def needs(self) -> Needs:
        """Return the prompts' features, and the pool unless nothing is to be added."""
        return Needs(
            pixels=False,
            view_px=None,
            text=TextNeeds(tokenizer=PROMPT, template=self.template, arrays=(EOT, LN_FINAL)),
            pool=self.noise_ratio > 0,
            epoch="labels",
            held_out=self.held_out_share,
        )

    def recogniser(self, tokenizer: LabelTokenizer) -> None:
        """Return None: nothing reads images yet."""
        del tokenizer

    def part(self, tokenizer: LabelTokenizer) -> DecoderPart:
        """Return the decoder."""
        from ...models.decoder import DecoderPart

        return DecoderPart(self.decoder.config, tokenizer)

    def trainee(self, tokenizer: LabelTokenizer, shapes: Shapes) -> DptrTrainee:
        """Return the decoder with what it reads from."""
        from .trainee import DptrTrainee

        return DptrTrainee(self, tokenizer, shapes)
