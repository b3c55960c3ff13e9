"""Batches from a feature cache, in the order of `EpochOrder`, read as whole chunks.

Reading single rows of a sharded array is 50 to 200 times slower than reading whole chunks, so
nothing here ever does: a chunk is read when the first of a batch's lanes reaches it, on threads
some chunks ahead, and let go when the last lane has left it. Memory holds one chunk per lane that
this process serves, and a few more; what one leaves the next is read into. Rows go from there into
the batch at once.

Shapes: B rows of a global batch, b those of this process, C chunks, N rows, L label positions.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ...shared.ahead import iterate_ahead, map_ahead
from ...shared.cache.codecs.codecs import unfilter_pixels
from ...shared.cache.memory import MemoryPool
from ...shared.cache.reader import FeatureCache, TextTable
from ...shared.cache.shards import Array, ArrayReader
from ...shared.errors import UsageError
from .batch import Batch
from .order import NUM_LANES, EpochOrder, lanes_of

T = TypeVar("T")
_Arrays = Mapping[str, torch.Tensor]

_READ_THREADS = 2
_CHUNKS_AHEAD = 8
_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A chunk and what of it is usable."""

    unit_idx: int
    chunk_idx: int
    rows: npt.NDArray[np.intp] | None
    """Its usable rows; None: all of them."""
    text_ids: npt.NDArray[np.int32]
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
    num_positions: int = 0
    """L: characters of the longest label of the global batch, and EOS."""


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """A batch in (on a GPU: pinned) memory, image taps and pixels still encoded."""

    labels: list[str]
    num_positions: int
    arrays: _Arrays


class CacheLoader:
    """Yields the batches of one run, or one process's part of them."""

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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare the rows; reads the index of the cache, and no features.

        Args:
            cache: Sealed or half built; whatever units are committed are used.
            text: Its text table under the run's charset.
            image_taps: Image blocks to read; taps that no one asks for are not read.
            text_taps: Text blocks to read.
            max_label_length: Rows with longer labels are left out.
            batch_size: B, of all processes together.
            seed: Decides the order.
            device: Where batches go, and where features are decoded.
            units: Committed units to draw from; see `targets.choose_units`.
            num_views: K; epoch e reads view e mod K.
            rank: Which process this is; it serves the lanes that leave `rank` modulo `world_size`.
            world_size: Number of processes that share each batch.

        Raises:
            CacheMismatchError: the cache lacks a tap.
            CacheMissingError: the cache lacks a unit.
            UsageError: no row is usable, or there are more processes than lanes or rows in a batch.
        """
        if world_size > min(NUM_LANES, batch_size):
            raise UsageError(
                f"{world_size} processes cannot share batches of {batch_size} rows from "
                f"{NUM_LANES} lanes; start fewer, or raise --batch-size"
            )
        self._cache, self._text, self._device = cache, text, device
        self._text_taps = tuple(text_taps)
        self._memory = MemoryPool()
        arrays = ("pixels", *(f"block{tap}" for tap in image_taps))
        self._readers = [
            {key: cache.view_reader(view_idx, key) for key in arrays}
            for view_idx in range(num_views)
        ]
        self._row_types = {
            key: np.empty((0, *reader.layout.row_shape), reader.layout.dtype)
            for key, reader in self._readers[0].items()
        }
        self._codecs = {tap: cache.tap_codec(tap) for tap in image_taps}
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._lengths = np.fromiter(map(len, text.strings), np.int64, len(text.strings))
        self._chunks = self._usable_chunks(units, max_label_length)
        self._chunk_sizes = np.asarray([len(c.text_ids) for c in self._chunks], np.int64)
        self.num_rows = int(self._chunk_sizes.sum())
        """Rows that an epoch draws from."""
        if not self.num_rows:
            raise UsageError(
                f"{cache.storage}: no row has a label of at most {max_label_length} characters of "
                f"charset {text.spec.charset_name}"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches per epoch; the last one holds what is left, as in the official loader."""
        return -(-self.num_rows // self._batch_size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_batch` on; what came before is not read."""
        with contextlib.closing(self.host_batches(epoch, first_batch)) as batches:
            for batch, arrays in self._on_device(batches):
                yield self._decode(batch, arrays)

    def host_batches(self, epoch: int, first_batch: int = 0) -> Generator[HostBatch]:
        """Yield what `epoch` does, before it goes to the device."""
        readers = self._readers[epoch % len(self._readers)]
        gathered = iterate_ahead(self._gather(epoch, first_batch, readers), _BATCHES_AHEAD)
        # With zip, the thread behind `gathered` ends with this generator, however that is left.
        for _, batch in zip(range(first_batch, self.batches_per_epoch), gathered, strict=False):
            yield batch

    def _usable_chunks(self, units: Sequence[int], max_label_length: int) -> list[_Chunk]:
        chunk_rows = self._cache.spec.chunk_rows
        chunks = []
        for unit_idx in units:
            first_row, _ = self._cache.spec.unit_range(unit_idx)
            ids = self._text.of_label[self._cache.rows(unit_idx)["label"]].copy()
            ids[(ids >= 0) & (self._lengths[ids] > max_label_length)] = -1
            for view_idx in range(len(self._readers)):
                for bad_row in self._cache.unit(view_idx, unit_idx).bad_rows:
                    ids[bad_row - first_row] = -1
            for chunk_idx, start in enumerate(range(0, len(ids), chunk_rows)):
                part = ids[start : start + chunk_rows]
                is_usable = part >= 0
                chunks.append(
                    _Chunk(
                        unit_idx=unit_idx,
                        chunk_idx=chunk_idx,
                        rows=None if is_usable.all() else np.flatnonzero(is_usable),
                        text_ids=part[is_usable],
                    )
                )
        return chunks

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
            step, longest, left = _Step(), 0, set()
            for lane, chunk, part in _runs(lanes_of(places), chunks, rows):
                # The longest of all processes, so that the loss is the same for any number of them.
                text_ids = self._chunks[chunk].text_ids[part]
                longest = max(longest, int(self._lengths[text_ids].max()))
                if lane % self._world_size != self._rank:
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
            step.num_positions = longest + 1
            step.to_close.extend(sorted(chunk for chunk in left if not num_lanes_in[chunk]))
            yield step

    def _gather(
        self, epoch: int, first_batch: int, readers: Mapping[str, ArrayReader]
    ) -> Iterator[HostBatch]:
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
        at = self._chunks[chunk]
        return {
            key: reader.chunk(at.unit_idx, at.chunk_idx, memory=self._memory)
            for key, reader in readers.items()
        }

    def _put_together(self, step: _Step, opened: Mapping[int, Mapping[str, Array]]) -> HostBatch:
        chunks = [self._chunks[chunk] for chunk, _ in step.parts]
        parts = [chunk.text_ids[rows] for chunk, (_, rows) in zip(chunks, step.parts, strict=True)]
        text_ids = np.concatenate([np.empty(0, np.int32), *parts])
        arrays = {key: self._empty(len(text_ids), like) for key, like in self._row_types.items()}
        images, start = {key: rows.numpy() for key, rows in arrays.items()}, 0
        for chunk, (chunk_idx, rows) in zip(chunks, step.parts, strict=True):
            where, stop = chunk.places_of(rows), start + len(rows)
            for key, values in opened[chunk_idx].items():
                _gather_rows(values, where, images[key][start:stop])
            start = stop
        nodes = self._text.nodes[text_ids, : step.num_positions]
        for key, table, at in (
            *((f"text{tap}", self._text.taps[tap], nodes) for tap in self._text_taps),
            ("eot", self._text.eot, text_ids),
        ):
            arrays[key] = self._empty(len(text_ids), table[at[:0]])
            _gather_rows(table, at, arrays[key].numpy())
        return HostBatch(
            labels=[self._text.strings[i] for i in text_ids.tolist()],
            num_positions=step.num_positions,
            arrays=arrays,
        )

    def _empty(self, num_rows: int, like: Array) -> torch.Tensor:
        """Return room for rows; pinned on the way to a GPU, for the copy there to need no wait."""
        shape = (num_rows, *like.shape[1:])
        if self._device.type == "cuda":  # torch has a pool of its own for such memory.
            return torch.empty(shape, dtype=torch.from_numpy(like).dtype, pin_memory=True)
        block = self._memory.take(like.itemsize * math.prod(shape))
        return torch.from_numpy(block.view(like.dtype).reshape(shape))

    def _on_device(self, batches: Iterator[HostBatch]) -> Iterator[tuple[HostBatch, _Arrays]]:
        """Yield batches with their arrays on the device; a GPU gets the next one meanwhile."""
        if self._device.type != "cuda":
            yield from ((batch, batch.arrays) for batch in batches)
            return
        beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        copied = _one_ahead(_copy(batch, self._device, beside) for batch in batches)
        for batch, arrays, done in copied:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(done)
            for tensor in arrays.values():
                # Allocated beside: not to be used again there before the step is through with it.
                tensor.record_stream(stream)
            yield batch, arrays

    def _decode(self, batch: HostBatch, arrays: _Arrays) -> Batch:
        return Batch(
            views=unfilter_pixels(arrays["pixels"]),
            labels=batch.labels,
            num_positions=batch.num_positions,
            image_taps={
                tap: codec.decode(arrays[f"block{tap}"]) for tap, codec in self._codecs.items()
            },
            text_taps={tap: arrays[f"text{tap}"] for tap in self._text_taps},
            eot=arrays["eot"],
        )


def _copy(
    batch: HostBatch, device: torch.device, stream: torch.cuda.Stream
) -> tuple[HostBatch, _Arrays, torch.cuda.Event]:
    """Begin to copy a batch to a GPU on a stream; the event happens when it is there."""
    with torch.cuda.stream(stream):
        arrays = {k: t.to(device, non_blocking=True) for k, t in batch.arrays.items()}
        return batch, arrays, stream.record_event()


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, each after the next one has been made."""
    held: list[T] = []
    for item in items:
        yield from held
        held = [item]
    yield from held


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
