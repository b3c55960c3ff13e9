"""The losses of CLIP-OCR: recognition, and the Linguistic Consistency Loss of Eq. 5 to 7.

Everything here computes in float32 whatever comes in and whatever autocast says: similarities are
divided by a temperature of 0.03 and compared at the third decimal, and PyTorch's half precision
has three at best.

Shapes: N rows (batch x tokens, flattened), D width, B batch, L label positions, C characters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NORM_EPS = 1e-7


def linguistic_consistency(
    student_ND: Tensor,
    teacher_ND: Tensor,
    *,
    intra_weight: float,
    inter_weight: float,
    temperature: float,
) -> Tensor:
    """LCL, Eq. 7: make student rows relate to each other as the teacher's do, and match them.

    The paper writes it for one sequence; the official code, and this, flatten the whole batch into
    rows, padding included. Both terms are means over pairs, so the value depends on N.

    Args:
        student_ND: Aligned student features. Shape: (N, D).
        teacher_ND: The teacher's, row by row. Shape: (N, D).
        intra_weight: lambda_1, of Eq. 5: L1 between the two self-similarity matrices.
        inter_weight: lambda_2, of Eq. 6: contrastive, student rows against teacher rows.
        temperature: tau, of Eq. 6.

    Returns:
        A float32 scalar.
    """
    assert student_ND.shape == teacher_ND.shape, (student_ND.shape, teacher_ND.shape)
    with torch.autocast(student_ND.device.type, enabled=False):
        s_ND, t_ND = _unit_rows(student_ND), _unit_rows(teacher_ND)
        diagonal_N = torch.arange(len(s_ND), device=s_ND.device)
        inter = F.cross_entropy(s_ND @ t_ND.T / temperature, diagonal_N)
        intra = F.l1_loss(s_ND @ s_ND.T, t_ND @ t_ND.T)
        return intra_weight * intra + inter_weight * inter


def recognition_loss(logits_BLC: Tensor, targets_BL: Tensor) -> Tensor:
    """L_reg of Eq. 8: cross entropy over the characters and EOS of all labels.

    PAD is not a class of the student's head (see `tokenizer`); whatever is not, is not scored.
    Zero if nothing is.

    Args:
        logits_BLC: Shape: (B, L, C + 1).
        targets_BL: Token ids shifted by one: characters, EOS, PAD. Shape: (B, L).

    Returns:
        A float32 scalar: the mean over scored positions.
    """
    num_classes = logits_BLC.shape[-1]
    scored_BL = targets_BL < num_classes
    with torch.autocast(logits_BLC.device.type, enabled=False):
        total = F.cross_entropy(
            logits_BLC.float().flatten(end_dim=1),
            targets_BL.where(scored_BL, -100).flatten(),
            ignore_index=-100,
            reduction="sum",
        )
        return total / scored_BL.sum().clamp(min=1)


def _unit_rows(x_ND: Tensor) -> Tensor:
    x_ND = x_ND.float()
    norms_N1: Tensor = x_ND.norm(dim=-1, keepdim=True)
    return x_ND / (norms_N1 + _NORM_EPS)
