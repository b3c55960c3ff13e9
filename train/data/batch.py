"""What the loader hands to a method: views, and everything the teacher said of them.

Shapes: B batch, L label positions, T teacher image tokens, D teacher width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch on the training device, targets decoded to floating point."""

    views: torch.Tensor
    """uint8 RGB. Shape: (B, 32, 128, 3)."""
    labels: list[str]
    """B training labels, already adapted to the run's charset."""
    num_positions: int
    """L: characters of the longest label of all processes' parts of the batch, and EOS."""
    image_taps: Mapping[int, torch.Tensor]
    """Teacher's image residual stream after each tapped block. Shape: (B, T, D) each."""
    text_taps: Mapping[int, torch.Tensor]
    """Teacher's text residual stream after each tapped block, SOT dropped: position j belongs to
    character j (with word tokens to BPE token j), then EOT, then padding. Shape: (B, L, D) each.
    """
    eot: torch.Tensor
    """Teacher's projected EOT embedding. Shape: (B, D)."""
