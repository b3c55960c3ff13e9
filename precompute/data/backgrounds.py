"""Pictures of which parts lie behind rendered words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ...shared.data.folders import files_below
from ...shared.data.images import IMAGE_SUFFIXES, decode_image
from ...shared.errors import DataError
from ...shared.progress import progress_bar

SAMPLES_PER_PICTURE = 32
"""Samples that follow each other share one, because to decode it takes longer than to draw."""

_SIDE_PX = 320


def load_backgrounds(folder: Path, seed: int, on_problem: Callable[[str], None]) -> list[Path]:
    """Return the pictures at or below `folder` in random order.

    `on_problem` is told why a picture cannot be used.
    """
    paths = []
    found = files_below(folder, IMAGE_SUFFIXES)
    for path in progress_bar(found, unit="picture", desc="check"):
        try:
            _decode(path)
        except DataError as e:
            on_problem(str(e))
        else:
            paths.append(path)
    if not paths:
        raise DataError(f"no usable picture at or below {folder}; pass another --backgrounds")
    # Two numbers, because the order of words takes one.
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 0)))
    return [paths[path_idx] for path_idx in order.permutation(len(paths))]


def background_of(sample_idx: int, pictures: Sequence[Path]) -> Path | None:
    """Return which of the pictures lies behind a sample; of none, None."""
    return pictures[sample_idx // SAMPLES_PER_PICTURE % len(pictures)] if pictures else None


@lru_cache(maxsize=4)
def open_background(path: Path) -> Image.Image:
    """Return a picture, made smaller; kept, because samples that follow each other share it."""
    return _decode(path)


def _decode(path: Path) -> Image.Image:
    try:
        picture = decode_image(path.read_bytes(), enough_px=_SIDE_PX)
    except (OSError, DataError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise DataError(f"{path}: {reason}") from e
    picture.thumbnail((2 * _SIDE_PX, 2 * _SIDE_PX), reducing_gap=2)
    return picture
