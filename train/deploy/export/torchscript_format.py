"""A student as TorchScript: for C++ and for Python with PyTorch, without clipocr.

PyTorch calls TorchScript deprecated and names ``torch.export`` as its successor, which has no loop
that ends when the words do. While it is there, this works: the two halves of reading (`graph`) are
traced, the loop around them is compiled.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models.student import Student
from .graph import Beginning, Step, example_inputs

DESCRIPTION_NAME = "clipocr.json"
"""Under this name the description lies in the file, for ``_extra_files`` of ``torch.jit.load``."""


class _Reading(nn.Module):
    """The loop; TorchScript compiles its source, so it is plain on purpose."""

    def __init__(self, beginning: nn.Module, step: nn.Module, student: Student) -> None:
        super().__init__()
        self.beginning = beginning
        self.step = step
        self.bos_id = student.tokenizer.bos_id
        self.eos_id = student.tokenizer.eos_id
        self.num_positions = student.tokenizer.max_label_length + 1

    def forward(self, images: Tensor) -> Tensor:
        memories = self.beginning(images)
        contents = [memory[:, :, :0] for memory in memories]
        tokens = torch.full((images.shape[0],), self.bos_id, device=images.device)
        has_ended = torch.zeros_like(tokens, dtype=torch.bool)
        probabilities = []
        for _ in range(self.num_positions):
            newest, contents = self.step(tokens, contents, memories)
            probabilities.append(newest)
            tokens = newest.argmax(dim=-1)
            has_ended = has_ended | (tokens == self.eos_id)
            if bool(has_ended.all()):
                break
        return torch.stack(probabilities, dim=1)


def write_torchscript(path: Path, student: Student, description: dict[str, Any]) -> None:
    """Write a student, in eval mode and on the CPU, with its description as an extra file."""
    images, step_inputs = example_inputs(student)
    with torch.no_grad(), warnings.catch_warnings():
        # Of the deprecation, and of every Python number: those here do not depend on the batch.
        warnings.simplefilter("ignore")
        halves = (
            torch.jit.trace(Beginning(student).eval(), (images,), strict=False),
            torch.jit.trace(Step(student).eval(), step_inputs, strict=False),
        )
        script = torch.jit.script(_Reading(*halves, student).eval())
        # Not right to the path: the archive would be named after a name that is only for a while.
        archive = io.BytesIO()
        torch.jit.save(script, archive, _extra_files={DESCRIPTION_NAME: json.dumps(description)})
    path.write_bytes(archive.getvalue())


def open_torchscript(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what a TorchScript file computes, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.load(path, map_location="cpu")

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            probabilities: Tensor = script(torch.from_numpy(images))
        return probabilities.numpy()

    return run
