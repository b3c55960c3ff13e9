"""Batches from a feature cache, in the order of `EpochOrder`, read as whole chunks.

Only whole chunks are read, because reading single rows of a sharded array is 50 to 200 times
slower. A chunk is read when the first of a batch's lanes reaches it, on threads some chunks ahead,
and let go when the last lane has left it; the next chunk is read into its memory. So memory holds
one chunk per lane that this process serves, and a few more. Rows are copied from there into the
batch.

An epoch over labels reads no chunk: its "chunks" are parts of the list of labels.

Text features are gathered from their table, or, where that is small against a GPU's free memory,
on the GPU, to which a batch then brings the numbers of its rows only.

Shapes: B rows of a global batch, b those of this process, C chunks, N rows, L label positions.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ...shared.ahead import iterate_ahead, map_ahead, one_ahead
from ...shared.cache.codecs.codecs import unfilter_pixels
from ...shared.cache.memory import MemoryPool
from ...shared.cache.names import PIXELS
from ...shared.cache.reader import FeatureCache
from ...shared.cache.shards import Array, ArrayReader
from ...shared.errors import UsageError
from ...shared.hashing import mix
from ...shared.options import num_cores
from ..methods.base import Needs
from ..models.tokenizer import LabelTokenizer
from .batch import Batch, BatchPart
from .labels import TrainingLabels
from .order import NUM_LANES, EpochOrder, lanes_of

_Arrays = Mapping[str, torch.Tensor]

_READ_THREADS = min(4, num_cores())
_CHUNKS_AHEAD = 4 * _READ_THREADS
_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A chunk and what of it is usable."""

    place: tuple[int, int] | None
    """(unit, chunk of the unit) to read; None: a part of the labels, of which nothing is read."""
    rows: npt.NDArray[np.intp] | None
    """Its usable rows; None: all of them."""
    label_ids: npt.NDArray[np.int32]
    """Of the usable rows."""

    def places_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where some of its usable rows stand in it."""
        return rows if self.rows is None else self.rows[rows]


@dataclass(kw_only=True)
class _Step:
    """What one batch takes from which chunk."""

    to_open: list[int] = field(default_factory=list)
    """Chunks to have read before the batch."""
    to_close: list[int] = field(default_factory=list)
    """Chunks that no lane is in after the batch."""
    parts: list[tuple[int, npt.NDArray[np.int64]]] = field(default_factory=list)
    """(chunk, which of its usable rows), in the order of the batch's rows."""
    sizes: tuple[BatchPart, ...] = ()
    """Of every process's part of the batch, by rank."""
    pool_rows: npt.NDArray[np.int64] | None = None
    """Which images of the pool come with the rows."""


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """A batch whose image arrays and pixels are as the cache stores them."""

    labels: list[str]
    token_ids: torch.Tensor
    """Shape: (B, L + 1)."""
    parts: tuple[BatchPart, ...]
    """Of every process, by rank."""
    images: _Arrays
    """Image arrays, pixels among them, by name."""
    text: _Arrays
    """Text arrays by name, or, if those are on the device, the rows of them that belong to each
    ``label``, Shape: (B,), and each ``position``, Shape: (B, L)."""
    pool: torch.Tensor | None
    """Tokens of natural images. Shape: (B, T, D)."""

    def to(self, device: torch.device) -> EncodedBatch:
        """Begin to copy the arrays to a device."""
        return replace(
            self,
            token_ids=self.token_ids.to(device, non_blocking=True),
            images={k: t.to(device, non_blocking=True) for k, t in self.images.items()},
            text={k: t.to(device, non_blocking=True) for k, t in self.text.items()},
            pool=None if self.pool is None else self.pool.to(device, non_blocking=True),
        )

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        """All of its tensors."""
        yield self.token_ids
        yield from self.images.values()
        yield from self.text.values()
        if self.pool is not None:
            yield self.pool


class CacheLoader:
    """Yields the batches of one run, or one process's part of them."""

    def __init__(
        self,
        cache: FeatureCache,
        labels: TrainingLabels,
        needs: Needs,
        *,
        tokenizer: LabelTokenizer,
        batch_size: int,
        seed: int,
        device: torch.device,
        units: Mapping[int, int],
        num_views: int,
        rank: int = 0,
        world_size: int = 1,
        held_out: bool = False,
    ) -> None:
        """Prepare the rows; reads the index of the cache, and no features.

        Args:
            cache: Sealed or half built; whatever units are committed are used.
            labels: Those of its rows under the run's charset, with their text features.
            needs: What is read of it; nothing else is.
            tokenizer: Of the run's charset; rows with labels too long for it are left out.
            batch_size: B, of all processes together.
            seed: Decides the order.
            device: Where batches go, and where features are decoded.
            units: Committed units to draw from, and how many of its rows, from the first on; an
                epoch over labels draws from their labels.
            num_views: K; epoch e reads view e mod K.
            rank: Which process this is; it serves the lanes that leave `rank` modulo `world_size`.
            world_size: Number of processes that share each batch.
            held_out: Whether to yield the labels that `needs` leaves out of training, instead of
                the others.

        Raises:
            CacheMismatchError: the cache lacks an array, or a pool of so many images.
            CacheMissingError: the cache lacks a unit.
            UsageError: no row is usable, or there are more processes than lanes or rows in a batch.
        """
        if world_size > min(NUM_LANES, batch_size):
            raise UsageError(
                f"{world_size} processes cannot share batches of {batch_size} rows from "
                f"{NUM_LANES} lanes; start fewer, or raise --batch-size"
            )
        self._cache, self._labels, self._device = cache, labels, device
        self._text_on_device = labels.features_on(device)
        self.tokenizer = tokenizer
        """Turns labels into the token ids of a batch, and what a model writes into labels."""
        self._memory = MemoryPool()
        arrays = (PIXELS, *needs.images) if needs.pixels else needs.images
        self._readers = [
            {name: cache.image_reader(view_idx, name) for name in arrays}
            for view_idx in range(num_views)
        ]
        self._row_types = {
            name: np.empty((0, *reader.layout.row_shape), reader.layout.dtype)
            for name, reader in self._readers[0].items()
        }
        self._codecs = {name: cache.codec(name) for name in needs.images}
        # What is held out is read unperturbed.
        self._pool = cache.pool_rows(batch_size) if needs.pool and not held_out else None
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._pads_together = needs.pads_together
        self._lengths = np.fromiter(map(len, labels.strings), np.int64, len(labels.strings))
        is_held_out = labels.held_out(needs.held_out)
        self._is_usable = (self._lengths <= tokenizer.max_label_length) & (is_held_out == held_out)
        of_rows = needs.epoch == "rows"
        self._chunks = self._chunks_of_rows(units) if of_rows else self._chunks_of_labels(units)
        self._chunk_sizes = np.asarray([len(c.label_ids) for c in self._chunks], np.int64)
        self.num_rows = int(self._chunk_sizes.sum())
        """Rows, or labels, that an epoch draws from."""
        if not self.num_rows and held_out:
            raise UsageError(
                f"{cache.storage}: of {len(labels.strings):,} labels none is held out by a share "
                f"of {needs.held_out:g}; hold out more of them, or 0"
            )
        if not self.num_rows:
            num_bad = sum(len(cache.unit(0, unit_idx).bad_rows) for unit_idx in units)
            raise UsageError(
                f"{cache.storage}: no row can be used; {num_bad:,} have a picture that cannot be "
                f"decoded, and of the others none has a label of at most "
                f"{tokenizer.max_label_length} "
                f"characters of charset {labels.charset_name}"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches per epoch; the last one holds what is left, as in the official loader."""
        return -(-self.num_rows // self._batch_size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_batch` on; what came before is not read."""
        with contextlib.closing(self.encoded_batches(epoch, first_batch)) as batches:
            for batch in self._on_device(batches):
                yield self._decode(batch)

    def encoded_batches(self, epoch: int, first_batch: int = 0) -> Generator[EncodedBatch]:
        """Yield what `epoch` does, in (on the way to a GPU: pinned) memory."""
        readers = self._readers[epoch % len(self._readers)]
        gathered = iterate_ahead(self._gather(epoch, first_batch, readers), _BATCHES_AHEAD)
        # With zip, the thread behind `gathered` ends with this generator, however that is left.
        for _, batch in zip(range(first_batch, self.batches_per_epoch), gathered, strict=False):
            yield batch

    def _chunks_of_rows(self, units: Mapping[int, int]) -> list[_Chunk]:
        chunk_rows = self._cache.spec.chunk_rows
        chunks = []
        for unit_idx, num_rows in units.items():
            first_row, _ = self._cache.spec.unit_range(unit_idx)
            ids = self._usable_labels(unit_idx)
            ids[num_rows:] = -1
            for view_idx in range(len(self._readers)):
                for bad_row in self._cache.unit(view_idx, unit_idx).bad_rows:
                    ids[bad_row - first_row] = -1
            for chunk_idx, start in enumerate(range(0, len(ids), chunk_rows)):
                part = ids[start : start + chunk_rows]
                is_usable = part >= 0
                chunks.append(
                    _Chunk(
                        place=(unit_idx, chunk_idx),
                        rows=None if is_usable.all() else np.flatnonzero(is_usable),
                        label_ids=part[is_usable],
                    )
                )
        return chunks

    def _chunks_of_labels(self, units: Mapping[int, int]) -> list[_Chunk]:
        used = [self._usable_labels(unit_idx)[:num] for unit_idx, num in units.items()]
        ids = np.unique(np.concatenate(used))
        ids = ids[ids >= 0]
        size = self._cache.spec.chunk_rows
        return [
            _Chunk(place=None, rows=None, label_ids=ids[start : start + size])
            for start in range(0, len(ids), size)
        ]

    def _usable_labels(self, unit_idx: int) -> npt.NDArray[np.int32]:
        """Return the label of each row of a unit, -1 where it is not to be yielded."""
        ids = self._labels.of_label[self._cache.rows(unit_idx)["label"]].copy()
        ids[(ids >= 0) & ~self._is_usable[ids]] = -1
        return ids

    def _steps(self, epoch: int, first_batch: int) -> Iterator[_Step]:
        """Plan the batches of an epoch. Arithmetic; nothing is read."""
        order = EpochOrder(self._seed, epoch, self._chunk_sizes)
        chunk_of_lane: dict[int, int] = {}
        num_lanes_in: Counter[int] = Counter()
        for batch_idx in range(first_batch, self.batches_per_epoch):
            start = batch_idx * self._batch_size
            places = np.arange(start, min(start + self._batch_size, self.num_rows))
            # Lane by lane, so that the rows of a chunk come in runs.
            places = places[np.argsort(lanes_of(places), kind="stable")]
            chunks, rows = order.locate(places)
            step, left = _Step(), set()
            own = lanes_of(places) % self._world_size == self._rank
            num_rows, longest = [0] * self._world_size, [0] * self._world_size
            for lane, chunk, part in _runs(lanes_of(places), chunks, rows):
                rank = lane % self._world_size
                label_ids = self._chunks[chunk].label_ids[part]
                num_rows[rank] += len(part)
                longest[rank] = max(longest[rank], int(self._lengths[label_ids].max()))
                if rank != self._rank:
                    continue
                step.parts.append((chunk, part))
                if chunk_of_lane.get(lane) == chunk:
                    continue
                if lane in chunk_of_lane:
                    num_lanes_in[chunk_of_lane[lane]] -= 1
                    left.add(chunk_of_lane[lane])
                if chunk not in left and not num_lanes_in[chunk]:
                    step.to_open.append(chunk)
                chunk_of_lane[lane] = chunk
                num_lanes_in[chunk] += 1
            if self._pads_together:
                longest = [max(longest)] * self._world_size
            step.sizes = tuple(
                BatchPart(rows, length + 1) for rows, length in zip(num_rows, longest, strict=True)
            )
            if self._pool is not None:
                step.pool_rows = self._draw_pool(epoch, batch_idx, len(places))[own]
            step.to_close.extend(sorted(chunk for chunk in left if not num_lanes_in[chunk]))
            yield step

    def _draw_pool(self, epoch: int, batch_idx: int, num_rows: int) -> npt.NDArray[np.int64]:
        """Draw another image for every row of a global batch, however many processes share it."""
        assert self._pool is not None
        _, good = self._pool
        keys = mix(self._seed, 2, epoch, batch_idx, good)
        return good[np.argsort(keys, kind="stable")[:num_rows]]

    def _gather(
        self, epoch: int, first_batch: int, readers: Mapping[str, ArrayReader]
    ) -> Iterator[EncodedBatch]:
        """Read what the steps of an epoch open, some chunks ahead, and put batches together."""
        steps, ahead = itertools.tee(self._steps(epoch, first_batch))
        to_read = (chunk for step in ahead for chunk in step.to_open)
        opened: dict[int, dict[str, Array]] = {}
        with ThreadPoolExecutor(_READ_THREADS) as executor:
            read = map_ahead(executor, partial(self._read, readers), to_read, _CHUNKS_AHEAD)
            for step in steps:
                for chunk in step.to_open:
                    opened[chunk] = next(read)
                yield self._put_together(step, opened)
                for chunk in step.to_close:
                    del opened[chunk]

    def _read(self, readers: Mapping[str, ArrayReader], chunk: int) -> dict[str, Array]:
        """Return a chunk of each array."""
        place = self._chunks[chunk].place
        if place is None:
            return {}
        return {name: reader.chunk(*place, memory=self._memory) for name, reader in readers.items()}

    def _put_together(self, step: _Step, opened: Mapping[int, Mapping[str, Array]]) -> EncodedBatch:
        chunks = [self._chunks[chunk] for chunk, _ in step.parts]
        parts = [chunk.label_ids[rows] for chunk, (_, rows) in zip(chunks, step.parts, strict=True)]
        label_ids = np.concatenate([np.empty(0, np.int32), *parts])
        images = {name: self._empty(len(label_ids), like) for name, like in self._row_types.items()}
        views, start = {name: rows.numpy() for name, rows in images.items()}, 0
        for chunk, (chunk_idx, rows) in zip(chunks, step.parts, strict=True):
            where, stop = chunk.places_of(rows), start + len(rows)
            for name, values in opened[chunk_idx].items():
                _gather_rows(values, where, views[name][start:stop])
            start = stop
        labels = [self._labels.strings[i] for i in label_ids.tolist()]
        num_positions = step.sizes[self._rank].num_positions
        token_ids = self.tokenizer.encode(labels, num_positions)
        return EncodedBatch(
            labels=labels,
            token_ids=token_ids.pin_memory() if self._device.type == "cuda" else token_ids,
            parts=step.sizes,
            images=images,
            text=self._text_of(label_ids, num_positions),
            pool=self._pool_tokens(step.pool_rows),
        )

    def _text_of(self, label_ids: npt.NDArray[np.int32], num_positions: int) -> _Arrays:
        """Return the text arrays of some labels, or where they are on the device."""
        labels = self._labels
        width = labels.rows_of_positions.shape[1] if labels.reads_all_positions else num_positions
        positions = labels.rows_of_positions[label_ids, :width]
        arrays = {}
        if self._text_on_device is not None:
            for name, where in (("label", label_ids), ("position", positions)):
                arrays[name] = self._empty(len(where), where)
                arrays[name].copy_(torch.from_numpy(where))
            return arrays
        for name, table in labels.features.items():
            where = positions if name in labels.with_positions else label_ids
            arrays[name] = self._empty(len(where), table[where[:0]])
            table.take(where, arrays[name].numpy())
        return arrays

    def _pool_tokens(self, rows: npt.NDArray[np.int64] | None) -> torch.Tensor | None:
        if self._pool is None or rows is None:
            return None
        table, _ = self._pool
        tokens = self._empty(len(rows), table[:0])
        table.take(rows, tokens.numpy())
        return tokens

    def _text_features(self, text: _Arrays) -> _Arrays:
        """Return the text arrays of a batch that is on the device."""
        if self._text_on_device is None:
            return text
        of_position = self._labels.with_positions
        return {
            name: F.embedding(text["position" if name in of_position else "label"], features)
            for name, features in self._text_on_device.items()
        }

    def _empty(self, num_rows: int, like: Array) -> torch.Tensor:
        """Return room for rows; pinned on the way to a GPU, for the copy there to need no wait."""
        shape = (num_rows, *like.shape[1:])
        if self._device.type == "cuda":  # torch has a pool of its own for such memory.
            return torch.empty(shape, dtype=torch.from_numpy(like).dtype, pin_memory=True)
        block = self._memory.take(like.itemsize * math.prod(shape))
        return torch.from_numpy(block.view(like.dtype).reshape(shape))

    def _on_device(self, batches: Iterator[EncodedBatch]) -> Iterator[EncodedBatch]:
        """Yield batches with their arrays on the device; a GPU gets the next one meanwhile."""
        if self._device.type != "cuda":
            yield from batches
            return
        beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        for batch, done in one_ahead(_copy(batch, self._device, beside) for batch in batches):
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(done)
            for tensor in batch.tensors:
                # Allocated beside: not to be used again there before the step is through with it.
                tensor.record_stream(stream)
            yield batch

    def _decode(self, batch: EncodedBatch) -> Batch:
        pixels = batch.images.get(PIXELS)
        return Batch(
            labels=batch.labels,
            token_ids=batch.token_ids,
            parts=batch.parts if len(batch.parts) > 1 else (),
            views=None if pixels is None else unfilter_pixels(pixels),
            images={name: codec.decode(batch.images[name]) for name, codec in self._codecs.items()},
            text=self._text_features(batch.text),
            pool=batch.pool,
            device=self._device,
        )


def _copy(
    batch: EncodedBatch, device: torch.device, stream: torch.cuda.Stream
) -> tuple[EncodedBatch, torch.cuda.Event]:
    """Begin to copy a batch to a GPU on a stream; the event happens when it is there."""
    with torch.cuda.stream(stream):
        return batch.to(device), stream.record_event()


def _gather_rows(table: Array, where: Array, out: Array) -> None:
    """Copy rows of a table. Shape: (N, ...), (...) -> (..., ...)."""
    # NumPy: torch would start a second team of threads for this one. And "wrap", for "raise" would
    # gather into a buffer first.
    np.take(table, where, axis=0, out=out, mode="wrap")


def _runs(
    lanes: npt.NDArray[np.int64], chunks: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    """Yield (lane, chunk, rows) of neighbours that share lane and chunk. Shape: (P,) each."""
    is_first = (np.diff(lanes, prepend=-1) != 0) | (np.diff(chunks, prepend=-1) != 0)
    starts = np.flatnonzero(is_first)
    for start, stop in itertools.pairwise([*starts, len(rows)]):
        yield int(lanes[start]), int(chunks[start]), rows[start:stop]
