"""Batches from a feature cache: whole chunks in a seeded order, shuffled within a window.

Reading single rows of a sharded array is 50 to 200 times slower than reading whole chunks, so
nothing here ever does. Rows were permuted once at build, so a chunk is a fair sample already;
each epoch permutes the chunks, and a window of chunks is shuffled row by row. The order is a pure
function of the seed and the epoch: it does not depend on threads, and a run that is resumed at any
step sees what an uninterrupted one would have seen.

Shapes: B batch, N rows, T image tokens, L label positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from ..shared.ahead import iterate_ahead, map_ahead
from ..shared.arrays import Array, ArrayReader
from ..shared.cache import FeatureCache, TextTable
from ..shared.codecs import feature_codec, unfilter_pixels
from ..shared.errors import CacheMismatchError, CacheMissingError, UsageError
from ..shared.hashing import mix
from .batch import Batch

_WINDOW_CHUNKS = 16
_READ_THREADS = 2
_BATCHES_AHEAD = 2


def choose_units(cache: FeatureCache, fraction: float) -> list[int]:
    """Return the first `fraction` of the committed units, at least one.

    Rows were permuted at build, so any units are a fair sample.

    Raises:
        CacheMissingError: nothing is built yet.
    """
    units = cache.units()
    if not units:
        raise CacheMissingError(
            f"{cache.storage} has no finished unit yet; run its cache build command again"
        )
    return units[: max(1, round(fraction * len(units)))]


def choose_num_views(cache: FeatureCache, units: Sequence[int], wanted: int | None) -> int:
    """Return how many views of `units` to use: `wanted`, or all that are there.

    Raises:
        CacheMismatchError: there are fewer than wanted.
    """
    held = sum(set(units) <= set(cache.units(view_idx)) for view_idx in range(cache.num_views))
    if wanted is not None and wanted > held:
        raise CacheMismatchError(
            f"{cache.storage} has {held} views of these units, this run needs {wanted}; pass "
            f"--views {held}, or run its cache build command again with --views {wanted}"
        )
    return held if wanted is None else wanted


@dataclass(frozen=True, kw_only=True)
class _HostBatch:
    """A batch as it lies in memory, still encoded."""

    text_ids: npt.NDArray[np.int32]
    arrays: dict[str, Array]


class CacheLoader:
    """Yields the batches of one run."""

    def __init__(
        self,
        cache: FeatureCache,
        text: TextTable,
        *,
        image_taps: Sequence[int],
        text_taps: Sequence[int],
        max_label_length: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        units: Sequence[int],
        num_views: int,
    ) -> None:
        """Prepare the rows; reads the index of the cache, and no features.

        Args:
            cache: Sealed or half built; whatever units are committed are used.
            text: Its text table under the run's charset.
            image_taps: Image blocks to read; taps that no one asks for are not read.
            text_taps: Text blocks to read.
            max_label_length: Rows with longer labels are left out.
            batch_size: B.
            seed: Decides the order.
            device: Where batches go, and where features are decoded.
            units: Committed units to draw from; see `choose_units`.
            num_views: K; epoch e reads view e mod K.

        Raises:
            CacheMismatchError: the cache lacks a tap.
            CacheMissingError: the cache lacks a unit.
            UsageError: no row is usable.
        """
        self._cache, self._text, self._device = cache, text, device
        self._text_taps = {tap: torch.from_numpy(text.taps[tap]) for tap in text_taps}
        self._eot = torch.from_numpy(text.eot)
        self._image_taps = tuple(image_taps)
        self._codec = feature_codec(cache.spec.codec)
        arrays = ("pixels", *(f"block{tap}" for tap in image_taps))
        self._readers = [
            {key: cache.view_reader(view_idx, key) for key in arrays}
            for view_idx in range(num_views)
        ]
        self._batch_size, self._seed = batch_size, seed
        self._units = units
        self._chunks, self._row_text_ids = self._usable_rows(max_label_length)
        self.num_rows = sum(int((ids >= 0).sum()) for ids in self._row_text_ids)
        """Rows that an epoch draws from."""
        if not self.num_rows:
            raise UsageError(
                f"{cache.storage}: no row has a label of at most {max_label_length} characters of "
                f"charset {text.spec.charset_name}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; the last one holds what is left, as in the official loader."""
        return -(-self.num_rows // self._batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_step` on."""
        batches = iterate_ahead(self._host_batches(epoch, first_step), _BATCHES_AHEAD)
        for _, batch in zip(range(first_step, self.steps_per_epoch), batches, strict=False):
            yield self._to_device(batch)

    def _usable_rows(
        self, max_label_length: int
    ) -> tuple[list[tuple[int, int]], list[npt.NDArray[np.int32]]]:
        """Return every (unit, chunk), and the text id of each of its rows, -1 where unusable."""
        lengths = np.fromiter(map(len, self._text.strings), np.int64, len(self._text.strings))
        chunk_rows = self._cache.spec.chunk_rows
        chunks, text_ids = [], []
        for unit_idx in self._units:
            first_row, _ = self._cache.spec.unit_range(unit_idx)
            ids = self._text.of_label[self._cache.rows(unit_idx)["label"]].copy()
            ids[(ids >= 0) & (lengths[ids] > max_label_length)] = -1
            for view_idx in range(len(self._readers)):
                for bad_row in self._cache.unit(view_idx, unit_idx).bad_rows:
                    ids[bad_row - first_row] = -1
            for chunk_idx, start in enumerate(range(0, len(ids), chunk_rows)):
                chunks.append((unit_idx, chunk_idx))
                text_ids.append(ids[start : start + chunk_rows])
        return chunks, text_ids

    def _host_batches(self, epoch: int, first_step: int) -> Iterator[_HostBatch]:
        """Yield encoded batches; windows that lie wholly before `first_step` are not read."""
        order = np.argsort(mix(self._seed, 0, epoch, np.arange(len(self._chunks))))
        windows = [order[i : i + _WINDOW_CHUNKS] for i in range(0, len(order), _WINDOW_CHUNKS)]
        sizes = [sum(int((self._row_text_ids[c] >= 0).sum()) for c in w) for w in windows]
        num_skipped = first_step * self._batch_size
        first_window = 0
        while first_window < len(windows) and num_skipped >= sizes[first_window]:
            num_skipped -= sizes[first_window]
            first_window += 1
        chunk_ids = [int(c) for window in windows[first_window:] for c in window]
        with ThreadPoolExecutor(_READ_THREADS) as executor:
            readers = self._readers[epoch % len(self._readers)]
            read_chunk = partial(self._read_chunk, readers)
            read = map_ahead(executor, read_chunk, chunk_ids, _WINDOW_CHUNKS)
            rest: _HostBatch | None = None
            for window in windows[first_window:]:
                parts = [next(read) for _ in window]
                rows = _shuffled(parts, mix(self._seed, 1, epoch, int(window[0])))
                rows, num_skipped = _select(rows, slice(num_skipped, None)), 0
                if rest is not None:
                    rows = _concatenate([rest, rows])
                num_whole = len(rows.text_ids) // self._batch_size
                for i in range(num_whole):
                    start = i * self._batch_size
                    yield _select(rows, slice(start, start + self._batch_size))
                rest = _select(rows, slice(num_whole * self._batch_size, None))
            if rest is not None and len(rest.text_ids):
                yield rest

    def _read_chunk(self, readers: Mapping[str, ArrayReader], chunk_id: int) -> _HostBatch:
        """Return the usable rows of a chunk."""
        unit_idx, chunk_idx = self._chunks[chunk_id]
        text_ids = self._row_text_ids[chunk_id]
        usable = text_ids >= 0
        arrays = {k: reader.chunk(unit_idx, chunk_idx) for k, reader in readers.items()}
        if not usable.all():
            arrays = {key: rows[usable] for key, rows in arrays.items()}
        return _HostBatch(text_ids=text_ids[usable], arrays=arrays)

    def _to_device(self, batch: _HostBatch) -> Batch:
        arrays = {
            key: torch.from_numpy(rows).to(self._device, non_blocking=True)
            for key, rows in batch.arrays.items()
        }
        labels = [self._text.strings[i] for i in batch.text_ids.tolist()]
        num_positions = max(map(len, labels)) + 1
        nodes = torch.from_numpy(self._text.nodes[batch.text_ids, :num_positions])
        return Batch(
            views=unfilter_pixels(arrays["pixels"]),
            labels=labels,
            image_taps={tap: self._codec.decode(arrays[f"block{tap}"]) for tap in self._image_taps},
            text_taps={tap: t[nodes].to(self._device) for tap, t in self._text_taps.items()},
            eot=self._eot[torch.from_numpy(batch.text_ids)].to(self._device),
        )


def _shuffled(parts: Sequence[_HostBatch], key: npt.NDArray[np.uint64]) -> _HostBatch:
    rows = _concatenate(parts)
    order = np.argsort(mix(int(key[0]), np.arange(len(rows.text_ids))))
    return _take(rows, order)


def _concatenate(parts: Sequence[_HostBatch]) -> _HostBatch:
    return _HostBatch(
        text_ids=np.concatenate([part.text_ids for part in parts]),
        arrays={key: np.concatenate([p.arrays[key] for p in parts]) for key in parts[0].arrays},
    )


def _take(rows: _HostBatch, order: npt.NDArray[np.int64]) -> _HostBatch:
    return _HostBatch(
        text_ids=rows.text_ids[order],
        arrays={key: array[order] for key, array in rows.arrays.items()},
    )


def _select(rows: _HostBatch, part: slice) -> _HostBatch:
    return _HostBatch(
        text_ids=rows.text_ids[part],
        arrays={key: array[part] for key, array in rows.arrays.items()},
    )
