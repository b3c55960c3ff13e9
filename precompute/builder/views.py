"""Views: the pictures that teacher and student both see, made a chunk at a time.

A view is a pure function of the sample's bytes (and, with augmentation, of the cache seed, the
sample and the view), so any unit can be made again to the same bytes. Nothing here imports torch:
worker processes start in a fraction of a second.

Shapes: B rows of a chunk, H and W height and width of a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...shared.cache.codecs.codecs import Pixels, filter_pixels
from ...shared.cache.memory import Bytes
from ...shared.cache.names import CENTER_CROP
from ...shared.cache.shards import Array, ArrayLayout, encode_chunk
from ...shared.cache.spec import ViewSpec
from ...shared.data.images import ImageProblemError, center_crop, decode_image, stretch, upright
from ...shared.data.word_lmdb import WordLmdb
from .augment import Draws, augment, view_keys
from .pictures import PictureSource
from .scan import sample_hashes


class ViewChunk(NamedTuple):
    """The views of one chunk of rows."""

    views: Pixels
    """Black where the image is bad. Shape: (B, H, W, 3)."""
    bad: dict[int, str]
    """Position in the chunk -> why that image could not become a view."""


class ChunkRows(NamedTuple):
    """The rows of a chunk, as much as a view needs to know of them."""

    view_idx: int
    source: Array
    """Index of each row's source."""
    lmdb_index: Array
    """LMDB index of each row, from 1."""


class ViewMaker:
    """Makes chunks of views from the sources; travels to worker processes."""

    def __init__(
        self, pictures: Mapping[str, Path | PictureSource], view: ViewSpec, cache_seed: int
    ) -> None:
        self._names = list(pictures)
        self._sources = [
            WordLmdb(source) if isinstance(source, Path) else source for source in pictures.values()
        ]
        self._view_px = view.view_px
        self._crops = view.resize == CENTER_CROP
        self._is_augmented = view.augment == "randaugment"
        self._tall = view.tall
        self._cache_seed = cache_seed

    def __call__(self, rows: ChunkRows) -> ViewChunk:
        """Make the views of a chunk."""
        view_idx, source, lmdb_index = rows
        views = np.zeros((len(source), *self._view_px, 3), np.uint8)
        bad: dict[int, str] = {}
        hashes = sample_hashes(self._cache_seed, self._names, source, lmdb_index)
        keys = view_keys(self._cache_seed, hashes, view_idx)
        places = zip(source.tolist(), lmdb_index.tolist(), keys, strict=True)
        for idx, (source_idx, sample_idx, key) in enumerate(places):
            encoded = self._sources[source_idx].image(sample_idx)
            try:
                image = upright(decode_image(encoded or b""), self._tall)
            except ImageProblemError as e:
                bad[idx] = str(e)
                continue
            if self._is_augmented:
                image = augment(image, Draws(key))
            views[idx] = (
                center_crop(image, self._view_px.height_px)
                if self._crops
                else stretch(image, self._view_px)
            )
        return ViewChunk(views, bad)


def make_stored_views(
    maker: ViewMaker, layout: ArrayLayout | None, rows: ChunkRows
) -> tuple[ViewChunk, Bytes | None]:
    """Make the views of a chunk, and the payload of their pixels if those are stored.

    Compressing is work of the processes that decode.
    """
    made = maker(rows)
    return made, None if layout is None else encode_chunk(layout, filter_pixels(made.views))
