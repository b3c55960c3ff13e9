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

from ...shared.ahead import map_ahead, process_pool, take_idle_time_only
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
            encoded = self._encoded(chunks, views, at_end)
            num_built = 0
            for num_written in writer.write(encoded):
                num_built += num_written
                progress.update(num_written)
        return num_built

    def _encoded(
        self, chunks: Iterator[_Chunk], views: Iterator[tuple[ViewChunk, Bytes]], at_end: ExitStack
    ) -> Iterator[_EncodedChunk]:
        """Yield chunks on their way to disk.

        On the thread that asks for them: on another torch would start a second pool of threads, and
        on a CPU the two pools would wait for each other.
        """
        unit: _PendingUnit | None = None
        # `views` first in the zip: reading it advances the generator of chunks, `depth` ahead.
        for (made, pixels), chunk in zip(views, chunks, strict=False):
            if unit is None:
                unit = _PendingUnit(self._cache, chunk.rows.view_idx, chunk.unit_idx)
                at_end.callback(unit.discard)
            features = self._teacher.chunk_features(made.views, self._spec.chunk_rows)
            encoded = {names.PIXELS: pixels, **unit.encode(made, features)}
            yield _EncodedChunk(unit, made, encoded, chunk.is_last)
            if chunk.is_last:
                unit = None

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


class _EncodedChunk(NamedTuple):
    unit: _PendingUnit
    made: ViewChunk
    payloads: Mapping[str, Bytes]
    """Of each array."""
    is_last: bool


class _UnitWriter:
    """Writes all arrays of a chunk at once, and publishes a unit while the next is written."""

    def __init__(self, num_arrays: int, on_start: Callable[[], None] | None) -> None:
        self._chunks = ThreadPoolExecutor(1, initializer=on_start)
        # Half of them write while the others publish.
        self._arrays = ThreadPoolExecutor(2 * num_arrays, initializer=on_start)
        self._publisher = ThreadPoolExecutor(1, initializer=on_start)
        self._published: Future[None] | None = None

    def write(self, chunks: Iterator[_EncodedChunk]) -> Iterator[int]:
        """Write chunks, some of which wait for it, and yield how many rows each has.

        When it ends, every unit is published.
        """
        yield from map_ahead(self._chunks, self._write, chunks, _CHUNKS_AHEAD)
        self._wait()

    def _write(self, chunk: _EncodedChunk) -> int:
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

    def encode(self, made: ViewChunk, features: Mapping[str, torch.Tensor]) -> dict[str, Bytes]:
        """Return the payload of each array's chunk of features; of bad images it is zeros."""
        bad = list(made.bad)
        good = [idx for idx in range(len(made.views)) if idx not in made.bad][:_FIDELITY_ROWS]
        payloads = {}
        for array, of_array in features.items():
            codec = self._cache.codec(array)
            if bad:
                of_array[bad] = 0
            stored = codec.encode(of_array)
            if array not in self._fidelity and good:
                target = codec.target(of_array[good])
                self._fidelity[array] = measure_fidelity(target, codec.decode(stored[good]))
            if bad:
                stored[bad] = 0
            payloads[array] = encode_chunk(self._layouts[array], stored.cpu().numpy())
        return payloads

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
