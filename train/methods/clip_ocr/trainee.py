"""CLIP-OCR (MM'23): symmetrical linguistic feature distillation, Eq. 3 and 8.

Shapes: B batch, S student image tokens, D student width, L label positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ....shared.cache.names import EOT
from ...data.batch import Batch
from ...models.attention import initialize
from ...models.student import Student, StudentOutput
from ...models.tokenizer import LabelTokenizer
from ..base import Shapes
from ..recognition import recognition_loss
from ..trainee import Trainee
from .alignment import AlignedPair, GlobalAlignment, ImageAlignment, TokenAlignment
from .losses import AlignmentLoss
from .settings import ClipOcr


class ClipOcrTrainee(Trainee):
    """A student, and the heads by which the teacher supervises it."""

    recogniser: Student

    def __init__(self, method: ClipOcr, tokenizer: LabelTokenizer, shapes: Shapes) -> None:
        super().__init__()
        self.recogniser = method.recogniser(tokenizer)
        self.heads = ClipOcrHeads(
            method,
            shapes,
            stage_shapes=self.recogniser.encoder.stage_shapes,
            decoder_width=self.recogniser.decoder.config.width,
        )
        self.term_names = self.heads.term_names

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return every term of Eq. 8."""
        # Drawn here, because a compiled student cannot draw as an uncompiled one does.
        orders_KP = self.recogniser.draw_orders(batch.num_positions)
        output = self.recogniser(batch.normalized_views(), batch.token_ids, orders_KP)
        terms: dict[str, Tensor] = self.heads(output, batch)
        return terms

    def compilable(self) -> Sequence[nn.Module]:
        """Return the student; the losses are products in tiles, and little else."""
        return (self.recogniser,)


class ClipOcrHeads(nn.Module):
    """The training-only half of CLIP-OCR: alignment heads and the losses they feed."""

    def __init__(
        self,
        method: ClipOcr,
        shapes: Shapes,
        *,
        stage_shapes: Sequence[tuple[int, int]],
        decoder_width: int,
    ) -> None:
        """Make the heads of the stages that are supervised.

        Args:
            method: Says which.
            shapes: Of the teacher's features.
            stage_shapes: (S, D) of each encoder stage; 129 tokens of 384 for the paper's student.
            decoder_width: D of the decoder's stages.
        """
        super().__init__()
        self.method = method
        self.loss = AlignmentLoss(**vars(method.loss))
        self.image_heads = nn.ModuleList()
        for stage in method.image_stages:
            num_tokens, width = shapes.images[method.image_array(stage)]
            self.image_heads.append(
                ImageAlignment(
                    student_tokens=stage_shapes[stage - 1][0],
                    student_width=stage_shapes[stage - 1][1],
                    teacher_tokens=num_tokens,
                    teacher_width=width,
                )
            )
        self.word_head = (
            GlobalAlignment(
                student_width=stage_shapes[-1][1],
                teacher_width=shapes.text[EOT][0],
                normalizes=method.loss.kind in ("l1", "kl"),
            )
            if method.word
            else None
        )
        self.text_heads = nn.ModuleList(
            TokenAlignment(
                student_width=decoder_width,
                teacher_width=shapes.text[method.text_array(stage)][0],
            )
            for stage in method.text_stages
        )
        self.apply(initialize)

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the terms that `forward` returns, in its order."""
        return (
            "recognition",
            *(f"image_{stage}" for stage in self.method.image_stages),
            *(["word"] if self.method.word else []),
            *(f"text_{stage}" for stage in self.method.text_stages),
        )

    def forward(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """Return every term of Eq. 8 by name; the loss is their plain sum.

        Args:
            output: Of `Student.forward` for this batch.
            batch: What the student was given, and the teacher's features.

        Returns:
            Float32 scalars ``recognition``, ``image_1`` to ``3``, ``word``, ``text_1`` to ``3``,
            without those of stages that are not supervised.
        """
        loss, num_classes = self.loss, output.logits.shape[-1]
        recognition = recognition_loss(output.logits, output.targets, gather=loss.gather)
        terms = {"recognition": recognition}
        # PAD and BOS are no classes of the student; see `tokenizer`.
        keep_BL = batch.token_ids[:, 1:] < num_classes if self.method.mask_pads else None
        # Each process may have padded to a length of its own.
        text_counts = [part.num_rows * part.num_positions for part in batch.parts] or None
        # float32, because encoder stages 1 to 3 are raw residual streams, whose largest values half
        # precision may not hold. The heads cost about a hundredth of the student.
        with torch.autocast(output.logits.device.type, enabled=False):
            for name, head, student, teacher in self._matches(output, batch):
                pair: AlignedPair = head(student.float(), teacher.detach().float())
                if name.startswith("text"):
                    terms[name] = loss(*pair, keep_BL, text_counts)
                else:
                    num_tokens = pair.teacher_BTE.shape[1]
                    counts = [part.num_rows * num_tokens for part in batch.parts] or None
                    terms[name] = loss(*pair, None, counts)
        return terms

    def _matches(
        self, output: StudentOutput, batch: Batch
    ) -> Sequence[tuple[str, nn.Module, Tensor, Tensor]]:
        """Pair student stages with teacher features: term, head, student, teacher. Eq. 3."""
        method = self.method
        image = [
            (
                f"image_{stage}",
                head,
                output.encoder_stages[stage - 1],
                batch.images[method.image_array(stage)],
            )
            for head, stage in zip(self.image_heads, method.image_stages, strict=True)
        ]
        word = (
            [("word", self.word_head, output.summary, batch.text[EOT])]
            if self.word_head is not None
            else []
        )
        text = [
            (
                f"text_{stage}",
                head,
                output.decoder_stages[stage - 1],
                batch.text[method.text_array(stage)],
            )
            for head, stage in zip(self.text_heads, method.text_stages, strict=True)
        ]
        return [*image, *word, *text]
