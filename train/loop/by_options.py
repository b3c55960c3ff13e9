"""`clipocr.train`: a run from keyword arguments, which are the options of ``clipocr train``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import TrainConfig, TrainPlace
from .run import TrainSummary
from .run import train as train_run

_Path = str | os.PathLike[str]


def train(
    *,
    cache: _Path,
    out: _Path,
    val_data: _Path | Sequence[_Path] = (),
    resume: bool = False,
    init: _Path | None = None,
    device: str = TrainPlace.device,
    **options: Any,
) -> TrainSummary:
    """Train a recogniser from a cache, or go on where an interrupted run stopped.

        summary = clipocr.train(cache="words.cache", out="run", student="tiny", epochs=3)
        reader = clipocr.load("run")

    Args:
        cache: Feature cache: a folder, or an address such as ``s3://bucket/mjst.cache``.
        out: Folder of the run.
        val_data: Folder or folders with validation sets; ``best.pt`` is chosen by them.
        resume: Whether to go on with the run in `out`.
        init: Run folder or checkpoint whose recogniser this one begins with; None: random weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto is CUDA if there is one.
        options: Any other option of ``clipocr train`` by its name, with underscores: ``method``,
            ``student``, ``epochs``, ``batch_size``, ... ``clipocr train --help`` lists them. What
            is not given has the default it has there.

    Returns:
        The checkpoint to use, and figures of the run.

    Raises:
        CacheError: the cache is missing, damaged, or not the one this run needs.
        StopRequestedError: a signal ended the run; ``last.pt`` holds it.
        TrainingError: too many steps in a row were not finite.
        UsageError: an option is unknown or not possible, or the run folder is in use.
    """
    roots = [val_data] if isinstance(val_data, str | os.PathLike) else val_data
    place = {
        "cache": cache if "://" in str(cache) else Path(cache),
        "out": Path(out),
        "val_data": [Path(root) for root in roots],
        "device": device,
    }
    place |= {name: options.pop(name) for name in TrainPlace.names() if name in options}
    given = ", ".join(f"{name}={value!r}" for name, value in (place | options).items())
    return train_run(
        TrainConfig.from_values(options),
        TrainPlace.from_values(place, command=(f"clipocr.train({given})",)),
        resume=resume,
        init=None if init is None else Path(init),
    )
