"""Checkpoints: a recogniser with what is needed to rebuild it, and the training state beside it.

    method, settings            the method's name, and the values of its settings
    charset, max_label_length   what the recogniser's tokenizer is made of
    tall                        what it makes of tall pictures; those without are older: stretch
    recogniser                  its weights, or those of the part of one that the method trains;
                                None of a method that has neither
    teacher                     name of the CLIP that taught it; None: none did
    reached                     step, epoch, epochs of the run; accuracy and 1-NED of validation, if
                                this very step was validated; older ones lack it
    training                    step, the trainee's other weights, optimizer, ...; only in last.pt

They load with ``weights_only=True``, are written under a temporary name and then renamed, and hold
no frozen CLIP. A ``model.safetensors`` is read as one without training state.
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
from ...shared.foreign_file import why_unreadable
from ...shared.geometry import TALL
from ..deploy.safetensors_file import MODEL_NAME, read_safetensors
from ..methods import find_method
from ..methods.base import Method
from ..models.recogniser import Recogniser, RecogniserPart
from ..models.tokenizer import LabelTokenizer

BEST_NAME = "best.pt"
LAST_NAME = "last.pt"

_FORMAT = "clipocr-checkpoint-3"
_KEYS = {
    *("method", "settings", "charset", "max_label_length", "recogniser", "teacher", "training"),
}

_MOMENT = ("epoch", "step", "accuracy")


def save_checkpoint(
    path: Path,
    method: Method,
    tokenizer: LabelTokenizer,
    recogniser: RecogniserPart | None,
    training: Mapping[str, Any] | None = None,
    *,
    reached: Mapping[str, float] | None = None,
    teacher: str | None = None,
) -> None:
    """Write a checkpoint so that `path` is always a whole one, the old or the new.

    Args as above: `training` is all that resuming needs, None for a recogniser to use; `teacher`
    is ``MODEL/WEIGHTS`` of the CLIP that taught it; `reached` is how far the run was.
    """
    checkpoint = {
        "format": _FORMAT,
        "method": method.name,
        "settings": method.to_values(),
        "charset": asdict(tokenizer.charset),
        "max_label_length": tokenizer.max_label_length,
        "tall": recogniser.tall if isinstance(recogniser, Recogniser) else TALL[0],
        "recogniser": None if recogniser is None else recogniser.state_dict(),
        "teacher": teacher,
        "reached": dict(reached) if reached is not None else None,
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
    if run_or_checkpoint.is_file():
        return run_or_checkpoint
    for name in (BEST_NAME, LAST_NAME, MODEL_NAME):
        if (run_or_checkpoint / name).is_file():
            return run_or_checkpoint / name
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
        reason = why_unreadable(path, e)
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from e
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} is not a clipocr checkpoint; expected a best.pt or last.pt of clipocr train"
        )
    if missing := _KEYS - checkpoint.keys():
        raise CheckpointError(
            f"{path} lacks {', '.join(sorted(missing))}: another version of clipocr wrote it; "
            "train again, or use the version that run.json beside it names"
        )
    return checkpoint


def moment_of(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """Return what a checkpoint's content says of when it was written.

    ``epoch`` and ``step`` that it had come to, and the validation ``accuracy`` in percent; those
    that it states, as ``reached`` or by its training state.
    """
    training = checkpoint["training"]
    of_state = {"epoch": len(training["history"]), "step": training["step"]} if training else {}
    stated = checkpoint.get("reached") or of_state
    return {name: stated[name] for name in _MOMENT if name in stated}


def load_recogniser(run_or_checkpoint: Path, device: torch.device) -> Recogniser:
    """Return the trained recogniser of a run folder or checkpoint, in eval mode.

    Raises:
        CheckpointError: there is none, it is damaged, or its weights are of another recogniser.
    """
    path = find_checkpoint(run_or_checkpoint)
    return build_recogniser(load_checkpoint(path), path).to(device)


def build_recogniser(checkpoint: Mapping[str, Any], path: Path) -> Recogniser:
    """Return the recogniser of a checkpoint's content, in eval mode, on the CPU.

    Raises:
        CheckpointError: it has none, its weights are of another one, or its method is not
            installed; names `path`.
    """
    kept = build_kept(checkpoint, path)
    if not isinstance(kept, Recogniser):
        raise CheckpointError(
            f"{path} holds nothing that reads images: its method, {checkpoint['method']}, only "
            "pre-trains. Expected a checkpoint of a method that has a recogniser"
        )
    return kept


def build_kept(checkpoint: Mapping[str, Any], path: Path) -> RecogniserPart | None:
    """Return the recogniser of a checkpoint's content, or the part of one, in eval mode.

    None: it has neither.

    Raises:
        CheckpointError: its weights are of another one, or its method is not installed.
    """
    if checkpoint["recogniser"] is None:
        return None
    try:
        method = find_method(checkpoint["method"]).from_values(checkpoint["settings"])
    except UsageError as e:
        raise CheckpointError(
            f"{path}: {e}. Install the package that brings the method, or use the version of "
            "clipocr that wrote the checkpoint"
        ) from e
    try:
        charset = Charset(**checkpoint["charset"])
        tokenizer = LabelTokenizer(charset, checkpoint["max_label_length"])
        recogniser: RecogniserPart | None = method.recogniser(tokenizer) or method.part(tokenizer)
        assert recogniser is not None, "a checkpoint of its method has weights"
        recogniser.load_state_dict(checkpoint["recogniser"])
        tall = checkpoint.get("tall", TALL[0])
        if tall not in TALL:
            raise TypeError(f"tall is {tall!r}, expected one of {', '.join(TALL)}")
        if isinstance(recogniser, Recogniser):
            recogniser.tall = tall
    except (TypeError, RuntimeError) as e:
        # PyTorch names every parameter that is missing, unexpected or of another shape.
        raise CheckpointError(
            f"{path}: the weights do not fit the charset, label length and settings that it states "
            f"({' '.join(str(e).split())[:400]}); it was changed, or written by another version of "
            "clipocr. Charset and label length of a recogniser are fixed when it is trained"
        ) from e
    return recogniser.eval()
