"""Views: the pictures that teacher and student both see, made a chunk at a time.

A view is a pure function of the sample's bytes (and, with augmentation, of the cache seed, the
sample and the view), so any unit can be made again to the same bytes. Nothing here imports torch:
worker processes start in a fraction of a second.

Shapes: B rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..shared.codecs import Pixels
from ..shared.geometry import VIEW_SHAPE
from ..shared.images import ImageProblemError, decode_image, stretch
from ..shared.words import WordLmdb


@dataclass(frozen=True, kw_only=True)
class ViewChunk:
    """The views of one chunk of rows."""

    views: Pixels
    """Black where the image is bad. Shape: (B, 32, 128, 3)."""
    bad: dict[int, str]
    """Position in the chunk -> why that image could not become a view."""


class ViewMaker:
    """Makes chunks of views from the sources; travels to worker processes."""

    def __init__(self, sources: Sequence[Path]) -> None:
        self._sources = [WordLmdb(path) for path in sources]

    def __call__(self, rows: tuple[Sequence[int], Sequence[int]]) -> ViewChunk:
        """Make the views of rows given as (source indexes, LMDB indexes)."""
        sources, lmdb_indexes = rows
        views = np.zeros((len(sources), *VIEW_SHAPE), np.uint8)
        bad: dict[int, str] = {}
        for idx, (source_idx, lmdb_index) in enumerate(zip(sources, lmdb_indexes, strict=True)):
            encoded = self._sources[source_idx].image(lmdb_index)
            try:
                views[idx] = stretch(decode_image(encoded or b""))
            except ImageProblemError as e:
                bad[idx] = str(e)
        return ViewChunk(views=views, bad=bad)
