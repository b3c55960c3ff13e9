"""Build units: views are made ahead of the teacher, encoding and writing come after it.

A unit is the work, the publication and the verification of one run of rows of one view. Shapes: B
rows of a chunk, T image tokens, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ...shared.ahead import map_ahead, one_ahead, process_pool, take_idle_time_only
from ...shared.cache import names
from ...shared.cache.codecs.codecs import measure_fidelity
from ...shared.cache.memory import Bytes
from ...shared.cache.reader import FeatureCache
from ...shared.cache.records import UnitRecord
from ...shared.cache.shards import GROUP_METADATA, ArrayWriter, encode_chunk, write_metadata
from ..teacher.clip import Teacher
from .scan import hash_keys, rows_of_views
from .views import ChunkRows, StoredViewMaker, ViewChunk, ViewMaker

_CHUNKS_AHEAD = 4
"""Chunks of views in the making, and chunks of features on their way to disk."""
_FIDELITY_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """One chunk to build."""

    unit_idx: int
    rows: ChunkRows
    is_last: bool
    """Whether it is the last of its unit."""


class UnitBuilder:
    """Makes units: views ahead of the teacher, so that it need not wait, and files after it."""

    def __init__(
        self, cache: FeatureCache, teacher: Teacher, sources: tuple[Path, ...], num_workers: int
    ) -> None:
        self._cache = cache
        self._spec = cache.spec
        self._teacher = teacher
        self._views = StoredViewMaker(
            ViewMaker(sources, cache.spec.view, cache.spec.seed),
            cache.spec.image_layouts(0)[names.PIXELS],
        )
        self._num_workers = num_workers

    def build(self, units: Sequence[tuple[int, int]]) -> int:
        """Build and commit (view, unit) pairs; return how many rows were built.

        A unit that another process commits meanwhile is left to it.
        """
        ranges = [self._spec.unit_range(unit_idx) for _, unit_idx in units]
        num_rows, num_workers = sum(stop - start for start, stop in ranges), self._num_workers
        # Decoders beside a teacher on the CPU run at idle priority: one that holds a core would
        # delay all threads of the teacher's kernel, and the time between two kernels is enough.
        on_start = take_idle_time_only if self._teacher.device.type == "cpu" else None
        decode_pool = (
            process_pool(num_workers)
            if num_workers
            else ThreadPoolExecutor(1, initializer=on_start)
        )
        with (
            tqdm(
                total=num_rows, desc="image features", unit="image", disable=not units
            ) as progress,
            decode_pool as decoders,
            ExitStack() as at_end,
            _UnitWriter(1 + len(self._spec.images), on_start) as writer,
        ):
            chunks, to_make = itertools.tee(self._chunks(units, progress))
            depth = max(_CHUNKS_AHEAD, 2 * num_workers)
            views = map_ahead(decoders, self._views, (chunk.rows for chunk in to_make), depth)
            encoded = map(self._finished, one_ahead(self._encoded(chunks, views, at_end)))
            num_built = 0
            for num_written in writer.write(encoded):
                num_built += num_written
                progress.update(num_written)
        return num_built

    def _encoded(
        self, chunks: Iterator[_Chunk], views: Iterator[tuple[ViewChunk, Bytes]], at_end: ExitStack
    ) -> Iterator[_EncodedChunk]:
        """Yield chunks on their way to this memory.

        On the thread that asks for them: on another torch would start a second pool of threads, and
        on a CPU the two pools would wait for each other.
        """
        copies = _HostCopies(self._teacher.device)
        unit: _PendingUnit | None = None
        # `views` first in the zip: reading it advances the generator of chunks, `depth` ahead.
        for (made, pixels), chunk in zip(views, chunks, strict=False):
            if unit is None:
                unit = _PendingUnit(self._cache, chunk.rows.view_idx, chunk.unit_idx)
                at_end.callback(unit.discard)
            features = self._teacher.chunk_features(made.views, self._spec.chunk_rows)
            stored, largest = unit.encode(made, features)
            (*copied, magnitudes), arrived = copies.begin([*stored.values(), largest])
            yield _EncodedChunk(
                unit=unit,
                made=made,
                pixels=pixels,
                stored=dict(zip(stored, copied, strict=True)),
                largest=magnitudes,
                arrived=arrived,
                is_last=chunk.is_last,
            )
            if chunk.is_last:
                unit = None

    def _finished(self, chunk: _EncodedChunk) -> _WritableChunk:
        """Wait for a chunk, and check it. With a GPU that is already at the next one."""
        if chunk.arrived is not None:
            chunk.arrived.synchronize()
        for array, largest in zip(chunk.stored, chunk.largest.tolist(), strict=True):
            self._cache.codec(array).require_held(largest)
        payloads = {names.PIXELS: chunk.pixels, **chunk.unit.payloads(chunk.stored)}
        return _WritableChunk(chunk.unit, chunk.made, payloads, chunk.is_last)

    def _chunks(self, units: Sequence[tuple[int, int]], progress: tqdm[Any]) -> Iterator[_Chunk]:
        for view_idx, unit_idx in units:
            rows = self._cache.rows(unit_idx)
            num_rows, chunk_rows = len(rows["source"]), self._spec.chunk_rows
            if self._cache.is_committed(view_idx, unit_idx):
                progress.update(num_rows)
                continue
            for start in range(0, num_rows, chunk_rows):
                source, lmdb_index = (
                    rows[key][start : start + chunk_rows] for key in ("source", "lmdb_index")
                )
                yield _Chunk(
                    unit_idx=unit_idx,
                    rows=rows_of_views(
                        self._spec.seed, self._spec.sources, view_idx, source, lmdb_index
                    ),
                    is_last=start + chunk_rows >= num_rows,
                )


@dataclass(frozen=True, kw_only=True)
class _EncodedChunk:
    """A chunk that may still be on its way from a GPU."""

    unit: _PendingUnit
    made: ViewChunk
    pixels: Bytes
    """Their payload."""
    stored: Mapping[str, torch.Tensor]
    """Image arrays by name, in this memory."""
    largest: torch.Tensor
    """Largest magnitude of each array. Shape: (arrays,)."""
    arrived: torch.cuda.Event | None
    """When both are complete; None: they are."""
    is_last: bool


class _WritableChunk(NamedTuple):
    unit: _PendingUnit
    made: ViewChunk
    payloads: Mapping[str, Bytes]
    """Of each array."""
    is_last: bool


class _HostCopies:
    """Brings tensors of a device into this memory, from a GPU while it computes the next ones."""

    def __init__(self, device: torch.device) -> None:
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def begin(
        self, tensors: Sequence[torch.Tensor]
    ) -> tuple[Sequence[torch.Tensor], torch.cuda.Event | None]:
        """Begin to copy; return the copies, and the event that completes them, if one does."""
        beside = self._beside
        if beside is None:
            return tensors, None
        beside.wait_stream(torch.cuda.current_stream(beside.device))
        with torch.cuda.stream(beside):
            copies = []
            for tensor in tensors:
                # Pinned, because the host would wait for a copy to any other memory.
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies.append(copy.copy_(tensor, non_blocking=True))
                # Its memory may not be used again before the copy is made.
                tensor.record_stream(beside)
            return copies, beside.record_event()


class _UnitWriter:
    """Writes all arrays of a chunk at once, and publishes a unit while the next is written."""

    def __init__(self, num_arrays: int, on_start: Callable[[], None] | None) -> None:
        self._chunks = ThreadPoolExecutor(1, initializer=on_start)
        # Half of them write while the others publish.
        self._arrays = ThreadPoolExecutor(2 * num_arrays, initializer=on_start)
        self._publisher = ThreadPoolExecutor(1, initializer=on_start)
        self._published: Future[None] | None = None

    def write(self, chunks: Iterator[_WritableChunk]) -> Iterator[int]:
        """Write chunks, some of which wait for it, and yield how many rows each has.

        When it ends, every unit is published.
        """
        yield from map_ahead(self._chunks, self._write, chunks, _CHUNKS_AHEAD)
        self._wait()

    def _write(self, chunk: _WritableChunk) -> int:
        chunk.unit.append(chunk.made, chunk.payloads, self._arrays)
        if chunk.is_last:
            # One at a time: a unit's files are written faster than a disk takes them.
            self._wait()
            self._published = self._publisher.submit(chunk.unit.publish, self._arrays)
        return len(chunk.made.views)

    def _wait(self) -> None:
        if self._published is not None:
            self._published.result()

    def __enter__(self) -> _UnitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._chunks, self._publisher, self._arrays):
            pool.shutdown()


class _PendingUnit:
    """One unit on its way to disk."""

    def __init__(self, cache: FeatureCache, view_idx: int, unit_idx: int) -> None:
        self._cache = cache
        self._view_idx, self._unit_idx = view_idx, unit_idx
        self._layouts = cache.spec.image_layouts(view_idx)
        self._writers = {
            array: ArrayWriter(cache.folder, layout, unit_idx)
            for array, layout in self._layouts.items()
        }
        self._num_rows = 0
        self._bad: dict[int, str] = {}
        self._fidelity: dict[str, Mapping[str, float]] = {}

    def encode(
        self, made: ViewChunk, features: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return what is stored of each array, zeros for bad images, and the largest magnitudes.

        All on the teacher's device, and but for a unit's first chunk without waiting for it.
        """
        bad = list(made.bad)
        good = [idx for idx in range(len(made.views)) if idx not in made.bad][:_FIDELITY_ROWS]
        stored, largest = {}, []
        for array, of_array in features.items():
            codec = self._cache.codec(array)
            if bad:
                of_array[bad] = 0
            encoded, magnitude = codec.begin_encoding(of_array)
            if array not in self._fidelity and good:
                codec.require_held(float(magnitude))
                target = codec.target(of_array[good])
                self._fidelity[array] = measure_fidelity(target, codec.decode(encoded[good]))
            if bad:
                encoded[bad] = 0
            stored[array] = encoded
            largest.append(magnitude)
        return stored, torch.stack(largest)

    def payloads(self, stored: Mapping[str, torch.Tensor]) -> dict[str, Bytes]:
        """Return the payload of each array's chunk."""
        return {
            array: encode_chunk(self._layouts[array], of_array.numpy())
            for array, of_array in stored.items()
        }

    def append(self, made: ViewChunk, payloads: Mapping[str, Bytes], pool: Executor) -> None:
        """Write one chunk. On the writer thread, in order."""
        first_row = self._cache.spec.unit_range(self._unit_idx)[0] + self._num_rows
        self._bad |= {first_row + idx: reason for idx, reason in made.bad.items()}
        writers = [self._writers[array] for array in payloads]
        list(pool.map(ArrayWriter.append_chunk, writers, payloads.values()))
        self._num_rows += len(made.views)

    def publish(self, pool: Executor) -> None:
        """Publish every file, and then the record that commits them."""
        start, stop = self._cache.spec.unit_range(self._unit_idx)
        if self._num_rows != stop - start:
            # An earlier chunk could not be written, and its error is the one that is reported.
            raise RuntimeError(f"{self._num_rows} of {stop - start} rows were written")
        storage = self._cache.folder
        group = names.metadata_file(names.view_group(self._view_idx))
        files = {group: storage.ensure(group, GROUP_METADATA)}
        for layout in self._layouts.values():
            files |= write_metadata(storage, layout)
        for published in pool.map(ArrayWriter.publish, self._writers.values()):
            files |= published
        rows = self._cache.rows(self._unit_idx)
        record = UnitRecord(
            view_idx=self._view_idx,
            unit_idx=self._unit_idx,
            cache_id=self._cache.manifest.cache_id,
            files=files,
            rows=(start, stop),
            keys_sha256=hash_keys(rows),
            bad_rows=self._bad,
            fidelity=self._fidelity,
        )
        self._cache.publish(record)

    def discard(self) -> None:
        """Remove temporary files; harmless after `publish`."""
        for writer in self._writers.values():
            writer.discard()
