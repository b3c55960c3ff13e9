"""The losses of CLIP-OCR that align student with teacher (Eq. 4 to 7, table 3).

Everything here computes in float32 whatever comes in and whatever autocast says: similarities are
divided by a temperature of 0.03 and compared at the third decimal, and PyTorch's half precision
has three at best.

In a run of several processes a loss is what `global_mean` makes of it.

Shapes: N rows (batch x tokens, flattened), K rows of other processes, D width, B batch, T tokens,
L label positions, C characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..recognition import global_mean, num_processes
from .relations import (
    gather_counts,
    inter_within_samples,
    intra_within_samples,
    other_rows,
    relation_sum,
)
from .settings import LossSettings

_NORM_EPS = 1e-7


@dataclass(frozen=True, kw_only=True)
class AlignmentLoss(LossSettings):
    """How far aligned student features are from the teacher's."""

    # Tiles written in place, collectives, row counts that are data: nothing a graph could hold.
    @torch.compiler.disable  # type: ignore[untyped-decorator] # torch does not type it
    def __call__(
        self,
        student_BTD: Tensor,
        teacher_BTD: Tensor,
        keep_BT: Tensor | None = None,
        row_counts: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the loss; 0 if no row counts. Unless ``gather`` is none, all processes must call.

        Args:
            student_BTD: Aligned student features; a class token is T = 1. Shape: (B, T, D).
            teacher_BTD: The teacher's, row by row. Shape: (B, T, D).
            keep_BT: Which rows count, for example all but padding; None for all, as in the
                official code. Shape: (B, T).
            row_counts: B x T of every process, by rank. None: all ask one another, and wait for the
                answer, as they do for the rows that `keep_BT` leaves.

        Returns:
            A float32 scalar.
        """
        assert student_BTD.shape == teacher_BTD.shape, (student_BTD.shape, teacher_BTD.shape)
        with torch.autocast(student_BTD.device.type, enabled=False):
            student_BTD, teacher_BTD = student_BTD.float(), teacher_BTD.float()
            if self.kind == "lcl" and self.scope == "sample" and student_BTD.shape[1] > 1:
                return self._lcl_within_samples(student_BTD, teacher_BTD, keep_BT)
            rows = student_BTD.flatten(end_dim=1), teacher_BTD.flatten(end_dim=1)
            if keep_BT is not None:
                kept_N = keep_BT.flatten().nonzero().squeeze(1)
                rows, counts = (rows[0][kept_N], rows[1][kept_N]), None
            else:
                counts = row_counts
            total = self._sum_over_rows(*rows, counts)
            return global_mean(total, len(rows[0]), self.gather)

    def _needs_others(self) -> bool:
        is_wanted = self.gather == "all" or (self.gather == "inter" and self.inter_weight > 0)
        return is_wanted and num_processes() > 1

    def _sum_over_rows(
        self, student_ND: Tensor, teacher_ND: Tensor, counts: Sequence[int] | None
    ) -> Tensor:
        match self.kind:
            case "l1":
                return (student_ND - teacher_ND).abs().mean(1).sum()
            case "kl":
                student_ND, teacher_ND = student_ND.log_softmax(1), teacher_ND.log_softmax(1)
                return F.kl_div(student_ND, teacher_ND, reduction="sum", log_target=True)
        s_ND, t_ND = _unit_rows(student_ND), _unit_rows(teacher_ND)
        if self.kind == "cosine":
            return (1 - (s_ND * t_ND).sum(1)).sum()
        return self._lcl_sum(s_ND, t_ND, counts)

    def _lcl_sum(self, s_ND: Tensor, t_ND: Tensor, counts: Sequence[int] | None) -> Tensor:
        """Sum over own rows what Eq. 7 is the mean of."""
        s_KD = t_KD = None
        if self._needs_others():
            counts = counts or gather_counts(len(s_ND), s_ND.device)
            if self.gather == "all":
                t_KD = other_rows(t_ND if self.inter_weight else t_ND.detach(), counts)
                s_KD = other_rows(s_ND.detach(), counts) if self.intra_weight else None
            else:
                t_KD = other_rows(t_ND.detach(), counts)
        return relation_sum(
            *(s_ND, t_ND, s_KD, t_KD),
            intra_weight=self.intra_weight,
            inter_weight=self.inter_weight,
            temperature=self.temperature,
        )

    def _lcl_within_samples(
        self, student_BTD: Tensor, teacher_BTD: Tensor, keep_BT: Tensor | None
    ) -> Tensor:
        if keep_BT is None:
            keep_BT = student_BTD.new_ones(student_BTD.shape[:2], dtype=torch.bool)
        s_BTD, t_BTD = _unit_rows(student_BTD), _unit_rows(teacher_BTD)
        # Without a term a 0 that has gradients: DDP wants every parameter used.
        total = s_BTD[:0].sum() + t_BTD[:0].sum()
        if self.intra_weight:
            total = total + self.intra_weight * intra_within_samples(s_BTD, t_BTD, keep_BT)
        if self.inter_weight:
            inter = inter_within_samples(s_BTD, t_BTD, keep_BT, temperature=self.temperature)
            total = total + self.inter_weight * inter
        return global_mean(total, keep_BT.any(1).sum(), self.gather)


def _unit_rows(rows: Tensor) -> Tensor:
    """Divide by the length of the last dimension, as the official code does it."""
    norms: Tensor = rows.norm(dim=-1, keepdim=True)
    return rows / (norms + _NORM_EPS)
