"""Checkpoints: a student with what is needed to rebuild it, and apart from it the training state.

    student    weights, its config, its charset            always
    teacher    name of the CLIP behind the cache           always
    training   step, heads, optimizer, scheduler, ...      only in last.pt

They load with ``weights_only=True``, are written under a temporary name and then renamed, and never
contain CLIP. A ``model.safetensors`` is read as one without training state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...shared.atomic import replacing
from ...shared.charset import Charset
from ...shared.errors import CheckpointError, UsageError
from ..deploy.safetensors_file import MODEL_NAME, read_safetensors
from ..models.config import StudentConfig
from ..models.student import Student
from ..models.tokenizer import LabelTokenizer

BEST_NAME = "best.pt"
LAST_NAME = "last.pt"

_FORMAT = "clipocr-checkpoint-2"


def save_checkpoint(
    path: Path,
    student: Student,
    training: Mapping[str, Any] | None = None,
    *,
    teacher: str | None = None,
) -> None:
    """Write a checkpoint so that `path` is always a whole one, the old or the new.

    Args:
        path: Of the file.
        student: What it is of.
        training: All that resuming needs; None for a student to use.
        teacher: ``MODEL/WEIGHTS`` of the cache the student was trained from.
    """
    checkpoint = {
        "format": _FORMAT,
        "student": {
            "config": student.config.to_values(),
            "charset": asdict(student.tokenizer.charset),
            "max_label_length": student.tokenizer.max_label_length,
            "weights": student.state_dict(),
        },
        "teacher": teacher,
        "training": dict(training) if training is not None else None,
    }
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(checkpoint, file)


def find_checkpoint(run_or_checkpoint: Path) -> Path:
    """Return the checkpoint meant by a file, or by a run folder: its best, its last, its model.

    The model is what a folder from a hub has instead.

    Raises:
        CheckpointError: there is none.
    """
    if not run_or_checkpoint.is_dir():
        candidates = [run_or_checkpoint]
    else:
        candidates = [run_or_checkpoint / name for name in (BEST_NAME, LAST_NAME, MODEL_NAME)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"{run_or_checkpoint} is neither a checkpoint nor a run folder with {BEST_NAME}, "
        f"{LAST_NAME} or {MODEL_NAME}; make one with: "
        f"clipocr train --cache CACHE --out {run_or_checkpoint}"
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content, or a safetensors file's as one, tensors on the CPU.

    Raises:
        CheckpointError: not a checkpoint of this program, or damaged.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        # torch.load raises whatever its unpickler or zip reader met.
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_first_line(e)}") from e
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} is not a clipocr checkpoint; expected a best.pt or last.pt of clipocr train"
        )
    if missing := {"student", "teacher", "training"} - checkpoint.keys():
        raise CheckpointError(
            f"{path} lacks {', '.join(sorted(missing))}: another version of clipocr wrote it; "
            "train again, or use the version that run.json beside it names"
        )
    return checkpoint


def load_student(run_or_checkpoint: Path, device: torch.device) -> Student:
    """Return the trained student of a run folder or checkpoint, in eval mode.

    Raises:
        CheckpointError: there is none, it is damaged, or its weights are of another student.
    """
    path = find_checkpoint(run_or_checkpoint)
    return build_student(load_checkpoint(path), path).to(device)


def build_student(checkpoint: Mapping[str, Any], path: Path) -> Student:
    """Return the student of a checkpoint's content, in eval mode, on the CPU.

    Raises:
        CheckpointError: its weights are of another student; names `path`.
    """
    saved = checkpoint["student"]
    try:
        tokenizer = LabelTokenizer(Charset(**saved["charset"]), saved["max_label_length"])
        student = Student(StudentConfig.from_values(saved["config"]), tokenizer)
        student.load_state_dict(saved["weights"])
    except (KeyError, TypeError, RuntimeError, UsageError) as e:
        # PyTorch names every parameter that is missing, unexpected or of another shape.
        raise CheckpointError(
            f"{path}: the weights do not fit the charset, label length and sizes that it states "
            f"({' '.join(str(e).split())[:400]}); it was changed, or written by another version of "
            "clipocr. Charset and label length of a student are fixed when it is trained"
        ) from e
    return student.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [error.__class__.__name__])[0]
