"""Build units: views are made ahead of the teacher, encoding and writing come after it.

A unit is the work, the publication and the verification of one run of rows of one view. Shapes: B
rows of a chunk, T image tokens, D width.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...shared.ahead import map_ahead, process_pool, take_idle_time_only
from ...shared.cache import names
from ...shared.cache.codecs.codecs import filter_pixels, measure_fidelity
from ...shared.cache.reader import FeatureCache
from ...shared.cache.records import UnitRecord
from ...shared.cache.shards import GROUP_METADATA, Array, ArrayWriter, write_metadata
from ..teacher.clip import Teacher
from .scan import hash_keys, sample_hashes
from .views import ChunkRows, ViewChunk, ViewMaker

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
        self._views = ViewMaker(sources, cache.spec.view.augment, cache.spec.seed)
        self._num_workers = num_workers

    def build(self, units: Sequence[tuple[int, int]]) -> int:
        """Build and commit (view, unit) pairs; return how many rows were built.

        A unit that another process commits meanwhile is left to it.
        """
        ranges = [self._spec.unit_range(unit_idx) for _, unit_idx in units]
        num_rows = sum(stop - start for start, stop in ranges)
        num_built, num_workers = 0, self._num_workers
        # Decoders beside a teacher on the CPU run at idle priority: one that holds a core would
        # delay all threads of the teacher's kernel, and the time between two kernels is enough.
        on_start = take_idle_time_only if self._teacher.device.type == "cpu" else None
        progress = tqdm(total=num_rows, desc="image features", unit="image", disable=not units)
        with (
            progress,
            (
                process_pool(num_workers)
                if num_workers
                else ThreadPoolExecutor(1, initializer=on_start)
            ) as decoders,
            _Behind(on_start) as behind,
        ):
            chunks, to_make = itertools.tee(self._chunks(units, progress))
            rows = (chunk.rows for chunk in to_make)
            depth = max(_CHUNKS_AHEAD, 2 * num_workers)
            views = map_ahead(decoders, self._views, rows, depth)
            unit: _PendingUnit | None = None
            # `views` first in the zip: reading it advances the generator of chunks, `depth` ahead.
            for made, chunk in zip(views, chunks, strict=False):
                if unit is None:
                    unit = _PendingUnit(self._cache, chunk.rows.view_idx, chunk.unit_idx)
                    behind.on_exit(unit.discard)
                # Encode on this thread: on another torch would start a second pool of threads,
                # and on a CPU the two pools would wait for each other.
                features = self._teacher.chunk_features(made.views, self._spec.chunk_rows)
                behind.submit(unit.append, made, unit.encode(made, features))
                if chunk.is_last:
                    behind.submit(unit.publish)
                    unit = None
                num_built += len(made.views)
                progress.update(len(made.views))
        return num_built

    def _chunks(self, units: Sequence[tuple[int, int]], progress: tqdm[Any]) -> Iterator[_Chunk]:
        source_names = [source.name for source in self._spec.sources]
        for view_idx, unit_idx in units:
            rows = self._cache.rows(unit_idx)
            source, lmdb_index = rows["source"], rows["lmdb_index"]
            num_rows, chunk_rows = len(source), self._spec.chunk_rows
            if self._cache.is_committed(view_idx, unit_idx):
                progress.update(num_rows)
                continue
            hashes = sample_hashes(self._spec.seed, source_names, source, lmdb_index)
            for start in range(0, num_rows, chunk_rows):
                part = slice(start, start + chunk_rows)
                yield _Chunk(
                    unit_idx=unit_idx,
                    rows=ChunkRows(
                        view_idx=view_idx,
                        sources=source[part].tolist(),
                        lmdb_indexes=lmdb_index[part].tolist(),
                        hashes=hashes[part].tolist(),
                    ),
                    is_last=start + chunk_rows >= num_rows,
                )


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

    def encode(self, made: ViewChunk, features: Mapping[str, torch.Tensor]) -> dict[str, Array]:
        """Return the stored form of a chunk's features by array; of bad images it is zeros."""
        bad = list(made.bad)
        good = [idx for idx in range(len(made.views)) if idx not in made.bad][:_FIDELITY_ROWS]
        encoded = {}
        for array, of_array in features.items():
            codec = self._cache.codec(array)
            of_array[bad] = 0
            stored = codec.encode(of_array)
            if array not in self._fidelity and good:
                target = codec.target(of_array[good])
                self._fidelity[array] = measure_fidelity(target, codec.decode(stored[good]))
            stored[bad] = 0
            encoded[array] = stored.cpu().numpy()
        return encoded

    def append(self, made: ViewChunk, encoded: Mapping[str, Array]) -> None:
        """Write one chunk. On the writer thread, in order, as is all that follows."""
        first_row = self._cache.spec.unit_range(self._unit_idx)[0] + self._num_rows
        self._bad |= {first_row + idx: reason for idx, reason in made.bad.items()}
        self._writers[names.PIXELS].append(filter_pixels(made.views))
        for array, stored in encoded.items():
            self._writers[array].append(stored)
        self._num_rows += len(made.views)

    def publish(self) -> None:
        """Publish every file, and then the record that commits them."""
        start, stop = self._cache.spec.unit_range(self._unit_idx)
        assert self._num_rows == stop - start, (self._num_rows, start, stop)
        storage = self._cache.folder
        group = names.metadata_file(names.view_group(self._view_idx))
        files = {group: storage.ensure(group, GROUP_METADATA)}
        for array, writer in self._writers.items():
            files |= {**write_metadata(storage, self._layouts[array]), **writer.publish()}
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


class _Behind:
    """One thread that works through calls in order, a bounded number of them behind.

    After a call has failed none that was queued behind it runs, because a unit that lacks a chunk
    must not be published.
    """

    def __init__(self, on_start: Callable[[], None] | None) -> None:
        self._executor = ThreadPoolExecutor(1, initializer=on_start)
        self._futures: deque[Future[None]] = deque()
        self._clean_ups: list[Callable[[], None]] = []
        self._has_failed = False

    def submit(self, work: Callable[..., None], *args: object) -> None:
        """Queue a call, waiting (and raising what an earlier one raised) if too many are."""
        self._futures.append(self._executor.submit(self._run, work, *args))
        while len(self._futures) > _CHUNKS_AHEAD:
            self._futures.popleft().result()

    def _run(self, work: Callable[..., None], *args: object) -> None:
        if self._has_failed:
            return
        try:
            work(*args)
        except BaseException:
            self._has_failed = True
            raise

    def on_exit(self, clean_up: Callable[[], None]) -> None:
        """Call `clean_up` when the block is left, however it is left."""
        self._clean_ups.append(clean_up)

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self._has_failed |= exc_type is not None
        try:
            while exc_type is None and self._futures:
                self._futures.popleft().result()
        finally:
            self._executor.shutdown(wait=True, cancel_futures=True)
            for clean_up in self._clean_ups:
                clean_up()
