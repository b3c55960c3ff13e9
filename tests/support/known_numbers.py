"""Numbers that look random and are the same everywhere, and a CLIP without weights of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from clipocr.shared.cache.spec import TeacherSpec

BLANK_TEACHER = TeacherSpec(
    model="ViT-equal-test",
    weights="random:0",
    weights_sha256="",
    activation="quickgelu",
    precision="fp32",
)
"""For a recogniser whose CLIP is given its weights by a test."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return numbers from -1 to 1 that look random and are the same everywhere."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + 1000 * seed
    return (2 * (torch.sin(12.9898 * count) * 43758.5453).frac()).clamp(-1, 1).float().view(shape)
