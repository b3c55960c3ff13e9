"""`clipocr export`: one file of a recogniser, written only if it reads as PyTorch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....shared.atomic import replacing
from ....shared.data.folders import is_text
from ....shared.errors import UsageError
from ...loop.checkpoint import build_recogniser, find_checkpoint, load_checkpoint
from ...models.recogniser import Recogniser
from ..safetensors_file import read_safetensors, write_safetensors
from .check import Agreement, check, drawn_views, given_views, read_in_pytorch
from .description import describe

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors"}
"""File name endings by format."""


def export(
    run_or_checkpoint: Path, file_format: str, out: Path, *, pictures: Path | None = None
) -> Agreement:
    """Write a recogniser to a file of one of `SUFFIXES`, if it agrees with the one in PyTorch.

    They are compared on `pictures`, an LMDB, a folder or a file; None: on words drawn here.

    Raises:
        CheckpointError: there is no recogniser.
        DataError: no picture can be decoded.
        ExportError: the exported one reads differently.
        UsageError: what writes the format is not installed, or cannot write that name.
    """
    from .onnx_format import open_onnx, require_onnx, write_onnx

    if not is_text(out):
        raise UsageError(
            f"{out} has bytes in its name that are not UTF-8, which neither ONNX Runtime nor "
            "safetensors can open; choose another --out"
        )
    if file_format == "onnx":
        require_onnx()
    recogniser, description = load_described(run_or_checkpoint)
    views = drawn_views(recogniser) if pictures is None else given_views(pictures, recogniser.tall)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        if file_format == "onnx":
            write_onnx(partial, recogniser, description)
            run = open_onnx(partial)
        else:
            write_safetensors(partial, recogniser, description)
            again = build_recogniser(read_safetensors(partial), partial)

            def run(views: Any) -> Any:
                return read_in_pytorch(again, views).numpy()

        return check(run, recogniser, views, what=f"the {file_format} file")


def load_described(run_or_checkpoint: Path) -> tuple[Recogniser, dict[str, Any]]:
    """Return a recogniser on the CPU, and what is true of it in any format."""
    path = find_checkpoint(run_or_checkpoint)
    checkpoint = load_checkpoint(path)
    recogniser = build_recogniser(checkpoint, path)
    return recogniser, describe(recogniser, checkpoint, path)
