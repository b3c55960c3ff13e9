"""What AdamW decays, and how fast it learns at each step."""

from __future__ import annotations

import math
from typing import Any

import torch


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups: decay for the weights of layers, none for biases, norms, embeddings.

    As PARSeq's ``no_weight_decay`` has it. timm's ``param_groups_weight_decay`` would decay every
    parameter of two dimensions and more, and so the embeddings and positions too.
    """
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    decayed = {id(part.weight) for part in module.modules() if isinstance(part, layers)}
    return [
        {
            "params": [p for p in module.parameters() if (id(p) in decayed) == is_decayed],
            "weight_decay": weight_decay if is_decayed else 0.0,
        }
        for is_decayed in (True, False)
    ]


def one_cycle(step: int, num_steps: int, peak: float, warmup_fraction: float) -> float:
    """Return the learning rate of a step: cosine up from peak / 25, cosine down to peak / 250,000.

    The same curve as `torch.optim.lr_scheduler.OneCycleLR` with its defaults. It is a function of
    the step, because that class divides by zero where the warm-up is exactly one step, and would
    have a state of its own to save.
    """
    start, end = peak / 25, peak / 25 / 1e4
    top = warmup_fraction * num_steps - 1
    if step <= top:
        return _cosine(start, peak, step / top if top else 1.0)
    return _cosine(peak, end, (step - top) / max(num_steps - 1 - top, 1e-9))


def _cosine(a: float, b: float, share: float) -> float:
    return b + (a - b) / 2 * (1 + math.cos(math.pi * share))
