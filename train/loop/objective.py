"""What a step differentiates: student and method as one module.

Shapes: B batch, L label positions.
"""

from __future__ import annotations

import torch
from torch import nn

from ...shared.device import autocast
from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from ..data.batch import Batch
from ..models.student import Student


class Objective(nn.Module):
    """Student and method as the one module that processes share gradients of."""

    def __init__(self, student: Student, method: nn.Module, precision: str) -> None:
        super().__init__()
        self.student, self.method = student, method
        self._precision = precision

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the loss terms of a batch."""
        device = batch.views.device
        token_ids = self.student.tokenizer.encode(batch.labels, batch.num_positions)
        if device.type == "cuda":
            # A copy of pageable memory would wait for all the work that is under way.
            token_ids = token_ids.pin_memory().to(device, non_blocking=True)
        images = normalize(batch.views, STUDENT_MEAN, STUDENT_STD)
        with autocast(device, self._precision):
            output = self.student(images, token_ids)
            terms: dict[str, torch.Tensor] = self.method(output, token_ids, batch)
        return terms
