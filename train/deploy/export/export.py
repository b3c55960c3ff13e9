"""`clipocr export`: one file of a student, written only if it reads as the student does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....shared.atomic import replacing
from ....shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from ...loop.checkpoint import build_recogniser, find_checkpoint, load_checkpoint
from ...models.student import Student
from ..safetensors_file import read_safetensors, write_safetensors
from .check import Agreement, Run, check, drawn_views, given_views
from .description import describe, describe_graph

SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "safetensors": ".safetensors"}
"""File name endings by format."""


def export(
    run_or_checkpoint: Path, file_format: str, out: Path, *, pictures: Path | None = None
) -> Agreement:
    """Write a student in another format, if it agrees there with the one in PyTorch.

    Args:
        run_or_checkpoint: The student.
        file_format: One of `SUFFIXES`.
        out: The file; what was there is replaced.
        pictures: LMDB, folder or file of pictures to compare on; None: words drawn here.

    Raises:
        CheckpointError: there is no student.
        DataError: no picture can be decoded.
        ExportError: the exported one reads differently.
        UsageError: what writes the format is not installed.
    """
    if file_format == "onnx":
        from .onnx_format import require_onnx

        require_onnx()
    student, description = load_described(run_or_checkpoint)
    student.requires_grad_(False)  # TorchScript would keep the mark, and with it every activation.
    views = drawn_views(student) if pictures is None else given_views(pictures)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        run = _write(partial, file_format, student, description)
        return check(run, student, views, what=f"the {file_format} file")


def load_described(run_or_checkpoint: Path) -> tuple[Student, dict[str, Any]]:
    """Return a student on the CPU, and what is true of it in any format."""
    path = find_checkpoint(run_or_checkpoint)
    checkpoint = load_checkpoint(path)
    student = build_recogniser(checkpoint, path)
    return student, describe(student, checkpoint, path)


def _write(path: Path, file_format: str, student: Student, description: dict[str, Any]) -> Run:
    """Write the file, and return what is read back from it."""
    match file_format:
        case "onnx":
            from .onnx_format import open_onnx, write_onnx

            write_onnx(path, student, description | describe_graph())
            return open_onnx(path)
        case "torchscript":
            from .torchscript_format import open_torchscript, write_torchscript

            write_torchscript(path, student, description | describe_graph())
            return open_torchscript(path)
        case _:
            write_safetensors(path, student, description)
            again = build_recogniser(read_safetensors(path), path)
            return lambda views: _probabilities(again, views)


def _probabilities(student: Student, views: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    images = normalize(torch.from_numpy(views), STUDENT_MEAN, STUDENT_STD)
    probabilities: npt.NDArray[np.float32] = student.decode(images).softmax(dim=-1).numpy()
    return probabilities
