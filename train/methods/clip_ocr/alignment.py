"""The heads that bring student and teacher features into one space, for training only.

Every head returns a matched pair for a consistency loss. In the official code
"norm" of Eq. 1 is a LayerNorm with a learned gain and bias on both sides, so the teacher's
features are fixed but what they are compared as is not.

Shapes: B batch, S student tokens, T teacher tokens, L label positions, D student width, E teacher
width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AlignedPair(NamedTuple):
    """Student and teacher features that should say the same, row by row."""

    student_BTE: Tensor
    """Shape: (B, T, E)."""
    teacher_BTE: Tensor
    """Shape: (B, T, E)."""


class ImageAlignment(nn.Module):
    """AAM, Eq. 1, for encoder stages: (norm(P f W_1), norm(F)).

    P mixes the student's tokens into the teacher's: learned, unconstrained, shared by all samples,
    and starting as the plain average.
    """

    decayed = ("mixing_TS",)
    """For `parameter_groups`: officially, timm's rule decays it."""

    def __init__(
        self, *, student_tokens: int, student_width: int, teacher_tokens: int, teacher_width: int
    ) -> None:
        super().__init__()
        self.mixing_TS = nn.Parameter(
            torch.full((teacher_tokens, student_tokens), 1 / student_tokens)
        )
        self.align = TokenAlignment(student_width=student_width, teacher_width=teacher_width)

    def forward(self, student_BSD: Tensor, teacher_BTE: Tensor) -> AlignedPair:
        """Shape: (B, S, D) and (B, T, E) -> (B, T, E) twice."""
        pair: AlignedPair = self.align(self.mixing_TS @ student_BSD, teacher_BTE)
        return pair


class TokenAlignment(nn.Module):
    """AAM, Eq. 1, without P: (norm(f W_1), norm(F)).

    Used as such for decoder stages. The paper has a P there too, the official code does not:
    label positions already correspond one to one.
    """

    def __init__(self, *, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(student_width, teacher_width)
        self.student_norm = nn.LayerNorm(teacher_width)
        self.teacher_norm = nn.LayerNorm(teacher_width)

    def forward(self, student_BLD: Tensor, teacher_BLE: Tensor) -> AlignedPair:
        """Shape: (B, L, D) and (B, L, E) -> (B, L, E) twice."""
        return AlignedPair(
            self.student_norm(self.project(student_BLD)), self.teacher_norm(teacher_BLE)
        )


class GlobalAlignment(nn.Module):
    """GAM, Eq. 2, for the class token, or what stands for it: (g(f_cls W_1) W_2, F_cls).

    As in the official code, a LayerNorm stands before the activation g and none on the target: LCL
    and cosine divide by the length themselves. For a loss that does not, `normalizes` adds the norm
    of Eq. 2 on both sides, without parameters.
    """

    def __init__(self, *, student_width: int, teacher_width: int, normalizes: bool = False) -> None:
        super().__init__()
        self.normalizes = normalizes
        self.project = nn.Sequential(
            nn.Linear(student_width, student_width),
            nn.LayerNorm(student_width),
            nn.ReLU(),
            nn.Linear(student_width, teacher_width),
        )

    def forward(self, student_BD: Tensor, teacher_BE: Tensor) -> AlignedPair:
        """Shape: (B, D) and (B, E) -> (B, 1, E) twice."""
        pair = self.project(student_BD[:, None]), teacher_BE[:, None]
        if self.normalizes:
            return AlignedPair(*(F.layer_norm(x, x.shape[-1:]) for x in pair))
        return AlignedPair(*pair)
