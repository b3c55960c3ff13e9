"""Build units: views are made ahead of the teacher, encoding and writing come after it.

A unit is the work, the publication and the verification of one run of rows of one view. Shapes: B
rows of a chunk, T image tokens, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
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
from ...shared.progress import progress_bar
from ..teacher.clip import Teacher
from .pictures import PictureSource
from .scan import hash_keys
from .views import ChunkRows, ViewChunk, ViewMaker, make_stored_views

_CHUNKS_AHEAD = 4
"""Chunks of views in the making, and chunks of features on their way to disk."""
_FIDELITY_ROWS = 64


class UnitBuilder:
    """Makes units: views ahead of the teacher, so that it need not wait, and files after it."""

    def __init__(
        self,
        cache: FeatureCache,
        teacher: Teacher,
        pictures: Mapping[str, Path | PictureSource],
        num_workers: int,
    ) -> None:
        self._cache = cache
        self._spec = cache.spec
        self._teacher = teacher
        self._make_views = partial(
            make_stored_views,
            ViewMaker(pictures, cache.spec.view, cache.spec.seed),
            cache.spec.image_layouts(0).get(names.PIXELS),
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

        def threads(count: int) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(count, initializer=on_start)

        num_arrays = len(self._spec.image_layouts(0))
        published: Future[None] | None = None
        with (
            progress_bar(
                total=num_rows, desc="image features", unit="image", is_shown=bool(units)
            ) as progress,
            process_pool(num_workers) if num_workers else threads(1) as decoders,
            ExitStack() as at_end,
            # All arrays of a chunk are written at once, while those of a unit are published.
            threads(2 * num_arrays) as array_writers,
            threads(1) as publisher,
            threads(1) as writer,
        ):

            def write(chunk: EncodedChunk) -> int:
                nonlocal published
                chunk.unit.append(chunk, array_writers)
                if chunk.unit.is_written:
                    # One at a time: a unit's files are written faster than a disk takes them.
                    if published is not None:
                        published.result()
                    published = publisher.submit(chunk.unit.publish, array_writers)
                return len(chunk.made.views)

            chunks, to_make = itertools.tee(self._chunks(units, progress))
            depth = max(_CHUNKS_AHEAD, 2 * num_workers)
            views = map_ahead(decoders, self._make_views, (rows for _, rows in to_make), depth)
            num_built = 0
            encoded = self._encoded(chunks, views, at_end)
            for num_written in map_ahead(writer, write, encoded, _CHUNKS_AHEAD):
                num_built += num_written
                progress.update(num_written)
            if published is not None:
                published.result()
        return num_built

    def commit(self, units: Sequence[tuple[int, int]]) -> int:
        """Commit units of which nothing is stored but what their rows are; return their rows."""
        with ThreadPoolExecutor(1) as pool:
            for view_idx, unit_idx in units:
                PendingUnit(self._cache, view_idx, unit_idx).publish(pool)
        return sum(self._spec.unit_size(unit_idx) for _, unit_idx in units)

    def _chunks(
        self, units: Sequence[tuple[int, int]], progress: tqdm[Any]
    ) -> Iterator[tuple[int, ChunkRows]]:
        """Yield the chunks to build, each with its unit."""
        for view_idx, unit_idx in units:
            rows = self._cache.rows(unit_idx)
            source, lmdb_index = rows["source"], rows["lmdb_index"]
            if self._cache.is_committed(view_idx, unit_idx):
                progress.update(len(source))
                continue
            for start in range(0, len(source), self._spec.chunk_rows):
                at = slice(start, start + self._spec.chunk_rows)
                yield unit_idx, ChunkRows(view_idx, source[at], lmdb_index[at])

    def _encoded(
        self,
        chunks: Iterator[tuple[int, ChunkRows]],
        views: Iterator[tuple[ViewChunk, Bytes | None]],
        at_end: ExitStack,
    ) -> Iterator[EncodedChunk]:
        """Yield chunks on their way to this memory.

        On the thread that asks for them: on another torch would start a second pool of threads, and
        on a CPU the two pools would wait for each other.
        """
        device = self._teacher.device
        beside = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        unit: PendingUnit | None = None
        # `views` first in the zip: reading it advances the generator of chunks, `depth` ahead.
        for (made, pixels), (unit_idx, rows) in zip(views, chunks, strict=False):
            if unit is None or unit.key != (rows.view_idx, unit_idx):
                unit = PendingUnit(self._cache, rows.view_idx, unit_idx)
                at_end.callback(unit.discard)
            features = self._teacher.chunk_features(made.views, self._spec.chunk_rows)
            stored, largest = unit.encode(made, features)
            tensors, arrived = [*stored.values(), largest], None
            if beside is not None:
                tensors, arrived = _begin_copies(tensors, beside)
            *copied, largest = tensors
            yield EncodedChunk(
                unit, made, pixels, dict(zip(stored, copied, strict=True)), largest, arrived
            )


def _begin_copies(
    tensors: Sequence[torch.Tensor], beside: torch.cuda.Stream
) -> tuple[list[torch.Tensor], torch.cuda.Event]:
    """Begin to copy from a GPU, on a stream beside the one on which it computes the next ones.

    Returns:
        The copies, and the event that completes them.
    """
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


class EncodedChunk(NamedTuple):
    """A chunk that may still be on its way from a GPU."""

    unit: PendingUnit
    made: ViewChunk
    pixels: Bytes | None
    """Their payload; None: they are not stored."""
    stored: Mapping[str, torch.Tensor]
    """Image arrays by name, in this memory."""
    largest: torch.Tensor
    """Largest magnitude of each array. Shape: (arrays,)."""
    arrived: torch.cuda.Event | None
    """When both are complete; None: they are."""


class PendingUnit:
    """One unit on its way to disk."""

    def __init__(self, cache: FeatureCache, view_idx: int, unit_idx: int) -> None:
        self._cache = cache
        self.key = view_idx, unit_idx
        self._rows = cache.spec.unit_range(unit_idx)
        self._layouts = cache.spec.image_layouts(view_idx)
        self._writers = {
            array: ArrayWriter(cache.folder, layout, unit_idx)
            for array, layout in self._layouts.items()
        }
        self._next_row = self._rows[0]
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

    def append(self, chunk: EncodedChunk, pool: Executor) -> None:
        """Wait for a chunk, check it and write it. On one thread, in order."""
        if chunk.arrived is not None:
            chunk.arrived.synchronize()
        payloads = {} if chunk.pixels is None else {names.PIXELS: chunk.pixels}
        for (array, stored), largest in zip(
            chunk.stored.items(), chunk.largest.tolist(), strict=True
        ):
            self._cache.codec(array).require_held(largest)
            payloads[array] = encode_chunk(self._layouts[array], stored.numpy())
        self._bad |= {self._next_row + idx: reason for idx, reason in chunk.made.bad.items()}
        writers = [self._writers[array] for array in payloads]
        list(pool.map(ArrayWriter.append_chunk, writers, payloads.values()))
        self._next_row += len(chunk.made.views)

    @property
    def is_written(self) -> bool:
        """Whether all rows are, none of them having failed."""
        return self._next_row == self._rows[1]

    def publish(self, pool: Executor) -> None:
        """Publish every file, and then the record that commits them."""
        view_idx, unit_idx = self.key
        storage = self._cache.folder
        group = names.metadata_file(names.view_group(view_idx))
        files = {group: storage.ensure(group, GROUP_METADATA)}
        for layout in self._layouts.values():
            files |= write_metadata(storage, layout)
        for published in pool.map(ArrayWriter.publish, self._writers.values()):
            files |= published
        record = UnitRecord(
            view_idx=view_idx,
            unit_idx=unit_idx,
            cache_id=self._cache.manifest.cache_id,
            files=files,
            rows=self._rows,
            keys_sha256=hash_keys(self._cache.rows(unit_idx)),
            bad_rows=self._bad,
            fidelity=self._fidelity,
        )
        self._cache.publish(record)

    def discard(self) -> None:
        """Remove temporary files; harmless after `publish`."""
        for writer in self._writers.values():
            writer.discard()
