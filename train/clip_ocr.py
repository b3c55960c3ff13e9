"""CLIP-OCR (MM'23): symmetrical linguistic feature distillation, Eq. 3 and 8.

    student   encoder 1    2    3    4     decoder 1    2    3    4
                      |    |    |    |             |    |    |    |
    teacher     image 3    6    9   EOT       text 9    6    3    label

The teacher's numbers are blocks; its text encoder is read backwards, from meaning to characters.
The method knows the student's output and the teacher's, and nothing of where they come from.

Shapes: B batch, T teacher image tokens, L label positions, C characters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..shared.errors import UsageError
from ..shared.schema import TOKENS, TeacherSpec
from .alignment import AlignedPair, GlobalAlignment, ImageAlignment, TokenAlignment
from .batch import Batch
from .losses import linguistic_consistency, recognition_loss
from .student import NUM_STAGES, StudentConfig, StudentOutput, initialize

_NUM_TAPS = NUM_STAGES - 1


@dataclass(frozen=True, kw_only=True)
class ClipOcrConfig:
    """The method's settings; the defaults are the official code's."""

    image_taps: tuple[int, ...] = (3, 6, 9)
    """Teacher image blocks that supervise encoder stages 1, 2, 3."""
    text_taps: tuple[int, ...] = (3, 6, 9)
    """Teacher text blocks that supervise decoder layers 3, 2, 1: shallow text, deep decoder."""
    tokens: str = "char"
    """How the teacher read the label: ``char`` by character, ``word`` whole (table 7)."""
    intra_weight: float = 5.0
    """lambda_1 of Eq. 7. The paper prints "lambda_1 5 and lambda_1 0.1"; tables 5, 6 and the code
    settle which is which."""
    inter_weight: float = 0.1
    """lambda_2 of Eq. 7."""
    temperature: float = 0.03
    """tau of Eq. 6."""

    def __post_init__(self) -> None:
        for name in ("image_taps", "text_taps"):
            taps = tuple(getattr(self, name))
            if len(taps) != _NUM_TAPS or list(taps) != sorted(set(taps)) or taps[0] < 1:
                raise UsageError(
                    f"{name} is {taps}, expected {_NUM_TAPS} block numbers, each above the last"
                )
            object.__setattr__(self, name, taps)  # JSON knows lists only.
        if self.tokens not in TOKENS:
            raise UsageError(f"tokens is {self.tokens!r}, expected one of {', '.join(TOKENS)}")
        if self.intra_weight < 0 or self.inter_weight < 0:
            raise UsageError(
                f"LCL weights are {self.intra_weight} and {self.inter_weight}, expected 0 or more"
            )
        if self.temperature <= 0:
            raise UsageError(f"LCL temperature is {self.temperature}, expected more than 0")

    def build(self, student: StudentConfig, teacher: TeacherSpec) -> ClipOcr:
        """Return the heads that join a student to a teacher."""
        return ClipOcr(
            student,
            self,
            num_image_tokens=teacher.num_image_tokens,
            image_width=teacher.image_width,
            text_width=teacher.text_width,
            eot_width=teacher.eot_width,
        )


class ClipOcr(nn.Module):
    """The training-only half of CLIP-OCR: alignment heads and the losses they feed."""

    def __init__(
        self,
        student: StudentConfig,
        config: ClipOcrConfig,
        *,
        num_image_tokens: int,
        image_width: int,
        text_width: int,
        eot_width: int,
    ) -> None:
        """Build the heads from a student to a teacher.

        Args:
            student: The student's size.
            config: The method's settings.
            num_image_tokens: T, 17 for ViT-B/16.
            image_width: Width of the teacher's image taps, 768 for ViT-B.
            text_width: Width of the teacher's text taps, 512 for ViT-B.
            eot_width: Width of its projected EOT embedding, 512 for ViT-B.
        """
        super().__init__()
        self.config = config
        self.image_heads = nn.ModuleList(
            ImageAlignment(
                student_tokens=student.num_image_tokens,
                student_width=student.width,
                teacher_tokens=num_image_tokens,
                teacher_width=image_width,
            )
            for _ in config.image_taps
        )
        self.word_head = GlobalAlignment(student_width=student.width, teacher_width=eot_width)
        self.text_heads = nn.ModuleList(
            TokenAlignment(student_width=student.width, teacher_width=text_width)
            for _ in config.text_taps
        )
        self.apply(initialize)

    def forward(
        self, output: StudentOutput, token_ids_BL: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Return every term of Eq. 8 by name; the loss is their plain sum.

        Args:
            output: Of `Student.forward` for this batch.
            token_ids_BL: What the student was given, BOS and EOS included. Shape: (B, L + 1).
            batch: The teacher's features.

        Returns:
            Float32 scalars ``recognition``, ``image_1`` to ``3``, ``word``, ``text_1`` to ``3``.
        """
        terms = {"recognition": recognition_loss(output.logits, token_ids_BL[:, 1:])}
        # Encoder stages 1 to 3 are raw residual streams, whose largest values half precision may
        # not hold, and the heads cost about a hundredth of the student.
        with torch.autocast(output.logits.device.type, enabled=False):
            for name, (head, student, teacher) in self._matches(output, batch).items():
                pair: AlignedPair = head(student.float(), teacher.detach().float())
                terms[name] = linguistic_consistency(
                    *pair,
                    intra_weight=self.config.intra_weight,
                    inter_weight=self.config.inter_weight,
                    temperature=self.config.temperature,
                )
        return terms

    def _matches(
        self, output: StudentOutput, batch: Batch
    ) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
        """Pair student stages with teacher features: head, student, teacher by term. Eq. 3."""
        image = zip(self.image_heads, output.encoder_stages, self.config.image_taps, strict=False)
        text = zip(
            self.text_heads, output.decoder_stages, reversed(self.config.text_taps), strict=False
        )
        return {
            **{
                f"image_{i}": (head, stage, batch.image_taps[tap])
                for i, (head, stage, tap) in enumerate(image, start=1)
            },
            "word": (self.word_head, output.encoder_stages[-1], batch.eot),
            **{
                f"text_{i}": (head, stage, batch.text_taps[tap])
                for i, (head, stage, tap) in enumerate(text, start=1)
            },
        }
