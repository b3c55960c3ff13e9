"""The recognition loss, and the mean over the rows of several processes.

In a run of W processes a loss is a mean over local rows, or, with ``gather="all"``, this process's
share of the mean over everybody's: W times its part, so that the mean over processes, which is
what DDP takes of gradients, is the loss of one process that holds all rows.

Shapes: B batch, L label positions, C characters.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def recognition_loss(logits_BLC: Tensor, targets_BL: Tensor, *, gather: str = "none") -> Tensor:
    """L_reg of Eq. 8: cross entropy over the characters and EOS of all labels.

    PAD is not a class of the student's head (see `tokenizer`); whatever is not, is not scored.
    Zero if nothing is.

    Args:
        logits_BLC: Shape: (B, L, C + 1).
        targets_BL: Token ids shifted by one: characters, EOS, PAD. Shape: (B, L).
        gather: See `global_mean`.

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
        return global_mean(total, scored_BL.sum(), gather)


def global_mean(local_sum: Tensor, local_count: Tensor | int, gather: str) -> Tensor:
    """Return a mean of which this process holds a part; 0 if there is nothing.

    With ``gather="all"``, W times this process's sum over everybody's count: the mean over
    processes, of values and of DDP's gradients, is the mean over all there is, however unevenly it
    is spread. All processes must call. Otherwise the mean of what is here.

    Args:
        local_sum: A scalar.
        local_count: What it is the sum of: rows, samples or characters.
        gather: ``all``: the mean over all processes; else over one's own.
    """
    world_size = num_processes() if gather == "all" else 1
    if world_size == 1 and isinstance(local_count, int):
        return local_sum / max(1, local_count)
    count = torch.as_tensor(local_count, device=local_sum.device)
    if world_size > 1:
        count = count.clone()
        dist.all_reduce(count)
    return local_sum * world_size / count.clamp(min=1)


def num_processes() -> int:
    """Return W."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
