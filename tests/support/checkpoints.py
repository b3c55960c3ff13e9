"""Checkpoints of students that were never trained."""

from __future__ import annotations

from pathlib import Path

import torch

from clipocr.shared.charset import Charset
from clipocr.train.loop.checkpoint import save_checkpoint
from clipocr.train.methods.clip_ocr.settings import ClipOcr
from clipocr.train.models.config import StudentConfig, StudentSize
from clipocr.train.models.tokenizer import LabelTokenizer


def save_untrained(
    path: Path, charset: str = "36", *, seed: int = 0, teacher: str | None = None
) -> Path:
    """Write the checkpoint of a small student with random weights; its folder is made."""
    torch.manual_seed(seed)
    size = StudentSize(
        width=16, patch_height_px=16, encoder_layers=4, encoder_heads=2, decoder_heads=2
    )
    method = ClipOcr(student=StudentConfig(size=size))
    tokenizer = LabelTokenizer(Charset.load(charset), 25)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, method, tokenizer, method.recogniser(tokenizer), teacher=teacher)
    return path
