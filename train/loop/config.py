"""What a run was asked for: what decides its weights, and where it reads and writes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...shared.charset import Charset
from ...shared.device import PRECISIONS
from ...shared.errors import UsageError
from ..methods.clip_ocr.method import ClipOcrConfig
from ..models.config import StudentConfig
from .processes import Processes


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What decides the weights of a run; stored in run.json and in last.pt."""

    student: StudentConfig = field(default_factory=StudentConfig)
    charset: Charset
    max_label_length: int = 25
    """Longest label the student can write, in characters."""
    method: ClipOcrConfig = field(default_factory=ClipOcrConfig)
    epochs: int = 5
    batch_size: int = 320
    """Samples per optimizer step, of all processes together."""
    accumulate: int = 1
    """Parts each batch is cut into, one after another, to need less memory. The losses that relate
    rows of a batch then see those of a part only."""
    learning_rate: float = 1.2374e-3
    """Peak of the OneCycle schedule. The official 1.4e-3 is scaled by sqrt(2) * 160 / 256."""
    warmup_fraction: float = 0.075
    """Share of all steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """AdamW's, on the matrices of linear and convolution layers only."""
    grad_clip_norm: float = 20.0
    """Largest norm of the whole gradient."""
    max_skipped_steps: int = 25
    """Steps in a row that may be skipped because their gradient is not finite."""
    precision: str = "fp32"
    """``fp32``, ``bf16`` or ``fp16`` matrix products."""
    compile: bool = False
    """Whether `torch.compile` fuses the encoder: minutes at the start, faster steps."""
    seed: int = 0
    fraction: float = 1.0
    """Share of the cache's units to train on."""
    num_views: int | None = None
    """K: epoch e trains on view e mod K. None: every view the cache has."""

    def __post_init__(self) -> None:
        for name in ("max_label_length", "epochs", "batch_size", "accumulate", "num_views"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulate} equal parts"
            )
        if self.max_skipped_steps < 0:
            raise UsageError(f"max_skipped_steps is {self.max_skipped_steps}, expected 0 or more")
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}"
            )
        if not 0 < self.fraction <= 1:
            raise UsageError(f"fraction is {self.fraction}, expected more than 0 and at most 1")
        if not 0 < self.warmup_fraction < 1:
            raise UsageError(f"warmup fraction is {self.warmup_fraction}, expected between 0 and 1")
        for name in ("learning_rate", "grad_clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}, expected more than 0")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight_decay is {self.weight_decay}, expected 0 or more")

    def to_json(self) -> dict[str, Any]:
        """Return the config as JSON would give it back, so that stored and present ones compare."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


@dataclass(frozen=True, kw_only=True)
class TrainPlace:
    """Where a run reads and writes; none of it changes the weights."""

    cache: str | Path
    """Folder, or an address such as ``s3://bucket/words.cache``."""
    cache_dir: Path | None = None
    """Where copies of what is read from an address are kept; None: the user's cache folder."""
    max_cache_bytes: int = 0
    """Most bytes of such copies; 0 keeps none."""
    out: Path
    device: torch.device
    processes: Processes = Processes()
    """This process among those of the run."""
    val_data: tuple[Path, ...] = ()
    """Roots of validation LMDBs; without any there is no best.pt."""
    val_charset: Charset
    command: tuple[str, ...] = ()
    """The command line, for run.json."""
    checkpoint_every_steps: int = 1000
    """Steps between writes of last.pt, besides the end of every epoch."""
