"""CLIP-OCR (MM'23): symmetrical linguistic feature distillation, Eq. 3 and 8.

    student   encoder 1    2    3    4     decoder 1    2    3    4
                      |    |    |    |             |    |    |    |
    teacher     image 3    6    9   EOT       text 9    6    3    label

The teacher's numbers are blocks; its text encoder is read backwards, from meaning to characters.
The method knows the student's output and the teacher's, and nothing of where they come from.

Shapes: B batch, T teacher image tokens, L label positions, C characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ....shared.cache.schema import TOKENS, TeacherSpec
from ....shared.errors import UsageError
from ...data.batch import Batch
from ...models.attention import initialize
from ...models.config import NUM_STAGES
from ...models.student import Student, StudentOutput
from .alignment import AlignedPair, GlobalAlignment, ImageAlignment, TokenAlignment
from .losses import AlignmentLoss, recognition_loss

_STAGES = tuple(range(1, NUM_STAGES))
"""Stages that a tap can supervise: all but the last, which ends in the EOT or in the label."""


@dataclass(frozen=True, kw_only=True)
class ClipOcrConfig:
    """The method's settings; the defaults are the official code's."""

    image_taps: tuple[int, ...] = (3, 6, 9)
    """Teacher image blocks that supervise encoder stages 1, 2, 3."""
    text_taps: tuple[int, ...] = (3, 6, 9)
    """Teacher text blocks that supervise decoder layers 3, 2, 1: shallow text, deep decoder."""
    image_stages: tuple[int, ...] = _STAGES
    """Encoder stages that are supervised; none: no image distillation (table 1)."""
    text_stages: tuple[int, ...] = _STAGES
    """Decoder layers that are supervised; none: no text distillation (tables 1, 12)."""
    word: bool = True
    """Whether the class token is supervised by the teacher's EOT embedding (GAM)."""
    tokens: str = "char"
    """How the teacher read the label: ``char`` by character, ``word`` whole (table 7)."""
    mask_pads: bool = False
    """Whether label positions after EOS are left out of the text terms; officially they are in."""
    loss: AlignmentLoss = field(default_factory=AlignmentLoss)
    """What compares aligned features."""

    def __post_init__(self) -> None:
        for name in ("image_taps", "text_taps"):
            taps = tuple(getattr(self, name))
            if len(taps) != len(_STAGES) or list(taps) != sorted(set(taps)) or taps[0] < 1:
                raise UsageError(
                    f"{name} is {taps}, expected {len(_STAGES)} block numbers, each above the last"
                )
            object.__setattr__(self, name, taps)  # JSON knows lists only.
        for name in ("image_stages", "text_stages"):
            stages = tuple(getattr(self, name))
            if list(stages) != sorted(set(stages) & set(_STAGES)):
                raise UsageError(
                    f"{name} is {stages}, expected some of {_STAGES}, each above the last, or none"
                )
            object.__setattr__(self, name, stages)
        if self.tokens not in TOKENS:
            raise UsageError(f"tokens is {self.tokens!r}, expected one of {', '.join(TOKENS)}")

    def image_tap(self, stage: int) -> int:
        """Return the image block that supervises an encoder stage."""
        return self.image_taps[stage - 1]

    def text_tap(self, stage: int) -> int:
        """Return the text block that supervises a decoder layer: the last for the first, Eq. 3."""
        return self.text_taps[-stage]

    @property
    def needed_image_taps(self) -> tuple[int, ...]:
        """Image blocks that have to be read."""
        return tuple(self.image_tap(stage) for stage in self.image_stages)

    @property
    def needed_text_taps(self) -> tuple[int, ...]:
        """Text blocks that have to be read."""
        return tuple(sorted(self.text_tap(stage) for stage in self.text_stages))

    def build(self, student: Student, teacher: TeacherSpec) -> ClipOcr:
        """Return the heads that join a student to a teacher."""
        return ClipOcr(
            self,
            stage_shapes=student.encoder.stage_shapes,
            decoder_width=student.config.size.width,
            num_image_tokens=teacher.num_image_tokens,
            image_width=teacher.image_width,
            text_width=teacher.text_width,
            eot_width=teacher.eot_width,
        )


class ClipOcr(nn.Module):
    """The training-only half of CLIP-OCR: alignment heads and the losses they feed."""

    def __init__(
        self,
        config: ClipOcrConfig,
        *,
        stage_shapes: Sequence[tuple[int, int]],
        decoder_width: int,
        num_image_tokens: int,
        image_width: int,
        text_width: int,
        eot_width: int,
    ) -> None:
        """Build the heads from a student to a teacher.

        Args:
            config: The method's settings.
            stage_shapes: (S, D) of each encoder stage; 129 tokens of 384 for the paper's student.
            decoder_width: D of the decoder's stages.
            num_image_tokens: T, 17 for ViT-B/16.
            image_width: Width of the teacher's image taps, 768 for ViT-B.
            text_width: Width of the teacher's text taps, 512 for ViT-B.
            eot_width: Width of its projected EOT embedding, 512 for ViT-B.
        """
        super().__init__()
        self.config = config
        self.image_heads = nn.ModuleList(
            ImageAlignment(
                student_tokens=stage_shapes[stage - 1][0],
                student_width=stage_shapes[stage - 1][1],
                teacher_tokens=num_image_tokens,
                teacher_width=image_width,
            )
            for stage in config.image_stages
        )
        self.word_head = (
            GlobalAlignment(student_width=stage_shapes[-1][1], teacher_width=eot_width)
            if config.word
            else None
        )
        self.text_heads = nn.ModuleList(
            TokenAlignment(student_width=decoder_width, teacher_width=text_width)
            for _ in config.text_stages
        )
        self.apply(initialize)

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the terms that `forward` returns, in its order."""
        return (
            "recognition",
            *(f"image_{stage}" for stage in self.config.image_stages),
            *(["word"] if self.config.word else []),
            *(f"text_{stage}" for stage in self.config.text_stages),
        )

    def forward(
        self, output: StudentOutput, token_ids_BL: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Return every term of Eq. 8 by name; the loss is their plain sum.

        Args:
            output: Of `Student.forward` for this batch.
            token_ids_BL: What the student was given, BOS and EOS included. Shape: (B, L + 1).
            batch: The teacher's features.

        Returns:
            Float32 scalars ``recognition``, ``image_1`` to ``3``, ``word``, ``text_1`` to ``3``,
            without those of stages that are not supervised.
        """
        config = self.config
        targets_BL = token_ids_BL[:, 1:]
        terms = {
            "recognition": recognition_loss(output.logits, targets_BL, gather=config.loss.gather)
        }
        # PAD and BOS are no classes of the student; see `tokenizer`.
        keep_BL = targets_BL < output.logits.shape[-1] if config.mask_pads else None
        batch_sizes = config.loss.batch_sizes(len(batch.labels), output.logits.device)
        # Encoder stages 1 to 3 are raw residual streams, whose largest values half precision may
        # not hold, and the heads cost about a hundredth of the student.
        with torch.autocast(output.logits.device.type, enabled=False):
            for name, head, student, teacher in self._matches(output, batch):
                pair: AlignedPair = head(student.float(), teacher.detach().float())
                keep = keep_BL if name.startswith("text") else None
                terms[name] = config.loss(*pair, keep, batch_sizes)
        return terms

    def _matches(
        self, output: StudentOutput, batch: Batch
    ) -> Sequence[tuple[str, nn.Module, Tensor, Tensor]]:
        """Pair student stages with teacher features: term, head, student, teacher. Eq. 3."""
        config = self.config
        image = [
            (
                f"image_{stage}",
                head,
                output.encoder_stages[stage - 1],
                batch.image_taps[config.image_tap(stage)],
            )
            for head, stage in zip(self.image_heads, config.image_stages, strict=True)
        ]
        word = (
            [("word", self.word_head, output.summary, batch.eot)]
            if self.word_head is not None
            else []
        )
        text = [
            (
                f"text_{stage}",
                head,
                output.decoder_stages[stage - 1],
                batch.text_taps[config.text_tap(stage)],
            )
            for head, stage in zip(self.text_heads, config.text_stages, strict=True)
        ]
        return [*image, *word, *text]
