"""A student that reads pictures of one colour, so that every prediction of a test is known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from samples import write_words

from clipocr.shared.charset import Charset
from clipocr.train.models.config import StudentConfig, StudentSize
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer


class Oracle(Student):
    """Reads the red level of the picture, which `painted` makes the index of an answer.

    It stands in for a trained student so that every prediction of a test is known beforehand.
    """

    def __init__(self, answers: list[str], charset: str = "94") -> None:
        config = StudentConfig(
            size=StudentSize(
                width=8, patch_height_px=32, encoder_layers=4, encoder_heads=1, decoder_heads=1
            )
        )
        super().__init__(config, LabelTokenizer(Charset.load(charset), 25))
        self.answers = answers
        self.eval()

    def decode(self, images: torch.Tensor, max_length: int | None = None) -> torch.Tensor:
        del max_length
        return self.written(images, self.answers)

    def written(self, images: torch.Tensor, answers: list[str]) -> torch.Tensor:
        levels = ((images[:, 0, 16, 64] * 0.5 + 0.5) * 255).round().long().tolist()
        ids = self.tokenizer.encode([answers[level] for level in levels])[:, 1:]
        ids = ids.clamp(max=self.tokenizer.num_classes - 1)
        logits = torch.nn.functional.one_hot(ids, self.tokenizer.num_classes).float()
        return logits * 50  # Certain.


class StagedOracle(Oracle):
    """An oracle that has its answers of each stage."""

    def __init__(self, stages: dict[str, list[str]], charset: str = "94") -> None:
        super().__init__(list(stages.values())[-1], charset)
        self.stages = stages

    def decode_stages(
        self, images: torch.Tensor, max_length: int | None = None
    ) -> dict[str, torch.Tensor]:
        del max_length
        return {name: self.written(images, answers) for name, answers in self.stages.items()}


def painted(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 50, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_painted(path: Path, labels: list[str], broken: int | None = None) -> None:
    images = {i: painted(i - 1) for i in range(1, len(labels) + 1)}
    if broken:
        images[broken] = b"broken"
    write_words(path, labels, images)
