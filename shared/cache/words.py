"""The words of a cache, one at a time, by row.

Only whole chunks are read, because a chunk is what is compressed and checked. The last two are
kept, so words in their order cost one reading per chunk, and words far apart one reading each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..data.word_lmdb import image_key
from ..errors import DataError
from .codecs.codecs import unfilter_pixels
from .names import PIXELS
from .reader import FeatureCache

_CHUNKS_KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a cache, and what it is of."""

    idx: int
    source: str
    """Name of the LMDB it came from."""
    lmdb_index: int
    """Its number there, from 1."""
    label: str
    """As written there."""
    label_idx: int
    """Which of the cache's unique labels that is."""

    @property
    def key(self) -> str:
        """Source and LMDB key of the picture, e.g. ``MJ/train/image-000000042``."""
        return f"{self.source}/{image_key(self.lmdb_index).decode()}"


class WordReader:
    """Reads the pixels and some image arrays of single rows."""

    def __init__(self, cache: FeatureCache, images: Sequence[str]) -> None:
        cache.require_images(images)
        self.cache = cache
        self.images = tuple(images)
        self._chunks: OrderedDict[tuple[int, int, int], dict[str, npt.NDArray[Any]]] = OrderedDict()
        self._columns: tuple[int, dict[str, npt.NDArray[Any]]] | None = None

    def row(self, row_idx: int) -> Row:
        """Return what a row is of."""
        unit_idx, at = divmod(row_idx, self.cache.spec.unit_rows)
        if self._columns is None or self._columns[0] != unit_idx:
            self._columns = (unit_idx, self.cache.rows(unit_idx))
        source, lmdb_index, label_idx = (
            int(self._columns[1][key][at]) for key in ("source", "lmdb_index", "label")
        )
        return Row(
            idx=row_idx,
            source=self.cache.spec.sources[source].name,
            lmdb_index=lmdb_index,
            label=self._labels[label_idx],
            label_idx=label_idx,
        )

    def random_rows(self, seed: int) -> Iterator[Row]:
        """Yield the rows of the finished units of view 0, random by units, then within each.

        Rows were permuted at the build, so any unit is a fair sample, and few units are read.

        Raises:
            CacheMissingError: no unit is finished.
        """
        rng = np.random.default_rng(seed)
        for unit_idx in rng.permutation(list(self.cache.first_rows(1))).tolist():
            start, stop = self.cache.spec.unit_range(unit_idx)
            for at in rng.permutation(stop - start).tolist():
                yield self.row(start + at)

    def rows_of(
        self, labels: Sequence[str], keys: Sequence[str], seed: int
    ) -> dict[str, list[Row]]:
        """Return the rows of the finished units of view 0 by label, whatever its case, and by key.

        Those of a label come in random order.

        Raises:
            DataError: no row has one of the labels or keys.
        """
        by_label = {label.lower(): label for label in labels}
        label_ids = [i for i, label in enumerate(self._labels) if label.lower() in by_label]
        places = [self._place(key) for key in keys]
        rows: dict[str, list[Row]] = {choice: [] for choice in (*labels, *keys)}
        for unit_idx in self.cache.first_rows(1):
            columns = self.cache.rows(unit_idx)
            is_chosen = np.isin(columns["label"], label_ids)
            for source, lmdb_index in places:
                is_chosen |= (columns["source"] == source) & (columns["lmdb_index"] == lmdb_index)
            for at in np.flatnonzero(is_chosen).tolist():
                row = self.row(self.cache.spec.unit_range(unit_idx)[0] + at)
                for choice in (by_label.get(row.label.lower(), ""), row.key):
                    if choice in rows:
                        rows[choice].append(row)
        if missing := [choice for choice, found in rows.items() if not found]:
            some = next(self.random_rows(seed))
            raise DataError(
                f"no finished row of {self.cache.storage} is {', '.join(missing)}; expected labels "
                f"such as {some.label}, or keys such as {some.key}"
            )
        rng = np.random.default_rng(seed)
        return {
            choice: [found[i] for i in rng.permutation(len(found)).tolist()]
            for choice, found in rows.items()
        }

    def _place(self, key: str) -> tuple[int, int]:
        """Return source and LMDB index of a key; (-1, -1), which no row has, if it is none."""
        source, _, name = key.rpartition("/")
        names = [some.name for some in self.cache.spec.sources]
        number = name.removeprefix("image-")
        is_key = source in names and number.isdecimal()
        return (names.index(source), int(number)) if is_key else (-1, -1)

    def problem(self, view_idx: int, row_idx: int) -> str:
        """Return why a row has nothing to show in a view, or nothing if it has."""
        unit_idx = row_idx // self.cache.spec.unit_rows
        if unit_idx not in self.cache.units(view_idx):
            return "not built yet"
        reason = self.cache.unit(view_idx, unit_idx).bad_rows.get(row_idx)
        return f"bad: {reason}" if reason is not None else ""

    def arrays(self, view_idx: int, row_idx: int) -> dict[str, npt.NDArray[Any]]:
        """Return what a view holds of a row, by the arrays' names, decoded.

        Shapes: ``pixels``, if the cache holds them, (H, W, 3) uint8; image arrays (T, D) float32.
        """
        unit_idx, at = divmod(row_idx, self.cache.spec.unit_rows)
        chunk_idx, at = divmod(at, self.cache.spec.chunk_rows)
        key = (view_idx, unit_idx, chunk_idx)
        if key not in self._chunks:
            self._chunks[key] = self._read(*key)
            if len(self._chunks) > _CHUNKS_KEPT:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(key)
        # Copied: a word that is kept would keep all rows of its chunk.
        return {name: values[at].copy() for name, values in self._chunks[key].items()}

    def _read(self, view_idx: int, unit_idx: int, chunk_idx: int) -> dict[str, npt.NDArray[Any]]:
        stored = {
            name: torch.tensor(self.cache.image_reader(view_idx, name).chunk(unit_idx, chunk_idx))
            for name in ((PIXELS,) if self.cache.spec.pixels else ()) + self.images
        }
        return {
            name: unfilter_pixels(values).numpy()
            if name == PIXELS
            else self.cache.codec(name).decode(values).float().numpy()
            for name, values in stored.items()
        }

    @cached_property
    def _labels(self) -> list[str]:
        return self.cache.labels()
