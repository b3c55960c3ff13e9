"""What an exported student says of itself, so that using it takes no clipocr and no source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ... import __version__
from ...shared.cache.spec import TeacherSpec
from ...shared.cache.storage import hash_file
from ...shared.geometry import (
    STUDENT_MEAN,
    STUDENT_STD,
    TALL,
    TALL_RATIO,
)
from ..loop.checkpoint import build_recogniser, find_checkpoint, load_checkpoint, moment_of
from ..models.recogniser import Recogniser


def load_described(run_or_checkpoint: Path) -> tuple[Recogniser, dict[str, Any]]:
    """Return a recogniser on the CPU, and what is true of it in any format."""
    path = find_checkpoint(run_or_checkpoint)
    checkpoint = load_checkpoint(path)
    recogniser = build_recogniser(checkpoint, path)
    return recogniser, describe(recogniser, checkpoint, path)


def describe(
    recogniser: Recogniser, content: Mapping[str, Any], checkpoint: Path
) -> dict[str, Any]:
    """Return what is true of a recogniser in any format; `content` is that of its checkpoint."""
    teacher = content["teacher"]
    height_px, width_px = recogniser.view_px
    turned = {
        "tall": recogniser.tall,
        "tall_ratio": TALL_RATIO,
        "tall_turn": "before the resize, a picture whose height / width is at least tall_ratio is "
        "turned by 90 degrees counter-clockwise (numpy.rot90)",
    }
    return {
        "clipocr_version": __version__,
        "checkpoint_sha256": hash_file(checkpoint),
        "moment": moment_of(content),
        "teacher": teacher_without_folder(teacher),
        "teacher_is_random": teacher is not None and TeacherSpec.has_random_weights(teacher),
        "method": content["method"],
        "settings": settings_without_folders(content["settings"]),
        "charset": asdict(recogniser.tokenizer.charset),
        "max_label_length": recogniser.tokenizer.max_label_length,
        "eos_id": recogniser.tokenizer.eos_id,
        "classes": "class 0 ends the word (EOS), class i is charset.characters[i - 1]",
        "preprocessing": {
            "picture": "one cropped word",
            **({} if recogniser.tall == TALL[0] else turned),
            "color": "RGB",
            "height_px": height_px,
            "width_px": width_px,
            "resize": "bicubic with antialiasing (Pillow's BICUBIC), aspect ratio not kept",
            "range": [0, 255],
            "mean": list(STUDENT_MEAN),
            "std": list(STUDENT_STD),
            "normalization": "(value / 255 - mean) / std",
        },
    }


def teacher_without_folder(teacher: str | None) -> str | None:
    """Return a teacher's name as it may leave this machine: of a file of weights, its name only."""
    if teacher is None:
        return None
    model, slash, weights = teacher.partition("/")
    return f"{model}{slash}{Path(weights).name}"


def settings_without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they may leave this machine: of a file's absolute path, its name only."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in settings.items()
    }
