"""`clipocr export`: one file of a recogniser, written only if it reads as PyTorch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....shared.atomic import replacing
from ....shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from ...loop.checkpoint import build_recogniser, find_checkpoint, load_checkpoint
from ...models.recogniser import Recogniser
from ..safetensors_file import read_safetensors, write_safetensors
from .check import Agreement, Run, check, drawn_views, given_views
from .description import describe, describe_graph

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors"}
"""File name endings by format."""


def export(
    run_or_checkpoint: Path, file_format: str, out: Path, *, pictures: Path | None = None
) -> Agreement:
    """Write a recogniser in another format, if it agrees there with the one in PyTorch.

    Args:
        run_or_checkpoint: The recogniser.
        file_format: One of `SUFFIXES`.
        out: The file; what was there is replaced.
        pictures: LMDB, folder or file of pictures to compare on; None: words drawn here.

    Raises:
        CheckpointError: there is no recogniser.
        DataError: no picture can be decoded.
        ExportError: the exported one reads differently.
        UsageError: what writes the format is not installed.
    """
    if file_format == "onnx":
        from .onnx_format import require_onnx

        require_onnx()
    recogniser, description = load_described(run_or_checkpoint)
    views = drawn_views(recogniser) if pictures is None else given_views(pictures)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        run = _write(partial, file_format, recogniser, description)
        return check(run, recogniser, views, what=f"the {file_format} file")


def load_described(run_or_checkpoint: Path) -> tuple[Recogniser, dict[str, Any]]:
    """Return a recogniser on the CPU, and what is true of it in any format."""
    path = find_checkpoint(run_or_checkpoint)
    checkpoint = load_checkpoint(path)
    recogniser = build_recogniser(checkpoint, path)
    return recogniser, describe(recogniser, checkpoint, path)


def _write(
    path: Path, file_format: str, recogniser: Recogniser, description: dict[str, Any]
) -> Run:
    """Write the file, and return what is read back from it."""
    match file_format:
        case "onnx":
            from .onnx_format import open_onnx, write_onnx

            write_onnx(path, recogniser, description | describe_graph())
            return open_onnx(path)
        case _:
            write_safetensors(path, recogniser, description)
            again = build_recogniser(read_safetensors(path), path)
            return lambda views: _probabilities(again, views)


def _probabilities(recogniser: Recogniser, views: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    images = normalize(torch.from_numpy(views), STUDENT_MEAN, STUDENT_STD)
    probabilities: npt.NDArray[np.float32] = recogniser.decode(images).softmax(dim=-1).numpy()
    return probabilities
