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

from ...shared.cache.codecs.codecs import Pixels, filter_pixels
from ...shared.cache.memory import Bytes
from ...shared.cache.shards import ArrayLayout, encode_chunk
from ...shared.cache.spec import ViewSpec
from ...shared.data.images import ImageProblemError, decode_image, stretch, upright
from ...shared.data.word_lmdb import WordLmdb
from ...shared.geometry import VIEW_SHAPE
from .augment import Draws, augment, view_keys


@dataclass(frozen=True, kw_only=True)
class ViewChunk:
    """The views of one chunk of rows."""

    views: Pixels
    """Black where the image is bad. Shape: (B, 32, 128, 3)."""
    bad: dict[int, str]
    """Position in the chunk -> why that image could not become a view."""


@dataclass(frozen=True, kw_only=True)
class ChunkRows:
    """The rows of a chunk, as much as a view needs to know of them."""

    view_idx: int
    sources: Sequence[int]
    """Index of each row's source."""
    lmdb_indexes: Sequence[int]
    """LMDB index of each row, from 1."""
    hashes: Sequence[int]
    """`sample_hashes` of each row."""


class ViewMaker:
    """Makes chunks of views from the sources; travels to worker processes."""

    def __init__(self, sources: Sequence[Path], view: ViewSpec, cache_seed: int) -> None:
        self._sources = [WordLmdb(path) for path in sources]
        self._is_augmented = view.augment == "randaugment"
        self._tall = view.tall
        self._cache_seed = cache_seed

    def __call__(self, rows: ChunkRows) -> ViewChunk:
        """Make the views of a chunk."""
        views = np.zeros((len(rows.sources), *VIEW_SHAPE), np.uint8)
        bad: dict[int, str] = {}
        keys = view_keys(self._cache_seed, rows.hashes, rows.view_idx)
        places = zip(rows.sources, rows.lmdb_indexes, keys, strict=True)
        for idx, (source_idx, lmdb_index, key) in enumerate(places):
            encoded = self._sources[source_idx].image(lmdb_index)
            try:
                image = upright(decode_image(encoded or b""), self._tall)
            except ImageProblemError as e:
                bad[idx] = str(e)
                continue
            if self._is_augmented:
                image = augment(image, Draws(key))
            views[idx] = stretch(image)
        return ViewChunk(views=views, bad=bad)


class StoredViewMaker:
    """Makes chunks of views and what is stored of them, so that compression is where decoding is.

    Travels to worker processes.
    """

    def __init__(self, views: ViewMaker, layout: ArrayLayout) -> None:
        """Make views by `views`, stored as the pixel array of that layout is."""
        self._views, self._layout = views, layout

    def __call__(self, rows: ChunkRows) -> tuple[ViewChunk, Bytes]:
        """Make the views of a chunk, and the payload of their pixels."""
        made = self._views(rows)
        return made, encode_chunk(self._layout, filter_pixels(made.views))
