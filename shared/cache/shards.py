"""The arrays of a cache: Zarr v3, sharded, written as a stream and read by whole chunks.

Every array is chunked along its first axis only. A shard file is the concatenation of its encoded
chunks and then an index of (offset, length) pairs, as the `sharding_indexed` codec of the Zarr v3
specification lays it out, so that plain ``zarr`` opens it. It is written here rather than through
Zarr because a unit must stream to disk in bounded memory, be synced, and yield the checksum of each
chunk; and read here because the index need not be fetched again for each chunk.

    chunk 0 | ... | chunk C-1 | index: C x (uint64 offset, uint64 length) | crc32c of index

    chunk = little-endian rows in C order, [zstd], crc32c (4 bytes)
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c
from numcodecs import Zstd

from ..errors import MEND, CacheCorruptError
from . import names
from .memory import Bytes, MemoryPool
from .row_table import RowTable
from .storage import (
    FileRecord,
    LocalStorage,
    PendingFile,
    RangeCheck,
    ReadStorage,
    missing_file,
)

Array = npt.NDArray[Any]

GROUP_METADATA = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}\n'
"""The ``zarr.json`` of a folder of arrays."""

_CRC_BYTES = 4
_ENTRY_BYTES = 16
_ABSENT = 2**64 - 1
_ZSTD_LEVEL = 1
"""Level 3 is slower and, on filtered pixels, larger: 2,421 against 2,365 bytes for MJSynth."""


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Where an array is, and how its rows become bytes."""

    name: str
    """Path in the cache, e.g. ``image/view0/block3``."""
    shape: tuple[int, ...]
    """(number of rows, ...)."""
    dtype: str
    """NumPy name, little-endian on disk."""
    chunk_rows: int
    """Rows read and checked at once."""
    shard_rows: int
    """Rows in a file; a multiple of `chunk_rows`."""
    compressed: bool = False
    """Whether chunks are zstd-compressed."""

    def __post_init__(self) -> None:
        assert self.shard_rows % self.chunk_rows == 0, self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, before compression."""
        return np.dtype(self.dtype).itemsize * math.prod(self.row_shape)

    @property
    def chunks_per_shard(self) -> int:
        """Number of chunks in a file, present or not."""
        return self.shard_rows // self.chunk_rows

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return -(-self.shape[0] // self.shard_rows)

    def shard_name(self, shard_idx: int) -> str:
        """Return the file that holds shard `shard_idx`."""
        return names.shard_file(self.name, shard_idx, len(self.shape))

    @property
    def shard_names(self) -> list[str]:
        """Return all files that hold shards."""
        return [self.shard_name(shard_idx) for shard_idx in range(self.num_shards)]

    def num_chunks(self, shard_idx: int) -> int:
        """Return how many chunks of a shard hold rows."""
        rows = min(self.shape[0] - shard_idx * self.shard_rows, self.shard_rows)
        return -(-rows // self.chunk_rows)

    @property
    def index_bytes(self) -> int:
        """Bytes of the index that a file ends in, its checksum included."""
        return self.chunks_per_shard * _ENTRY_BYTES + _CRC_BYTES

    def metadata(self) -> bytes:
        """Return the array's ``zarr.json``; not by Zarr, so that its version decides no byte."""

        def chunks(num_rows: int) -> dict[str, Any]:
            return {"chunk_shape": [num_rows, *self.row_shape]}

        dtype, checksum = np.dtype(self.dtype), {"name": "crc32c"}
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        zstd = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}
        sharding = {
            **chunks(self.chunk_rows),
            "codecs": [
                {"name": "bytes"} if dtype.itemsize == 1 else little,
                *([zstd] if self.compressed else []),
                checksum,
            ],
            "index_codecs": [little, checksum],
            "index_location": "end",
        }
        metadata = {
            "shape": self.shape,
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": chunks(self.shard_rows)},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if dtype.kind == "f" else 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
        return json.dumps(metadata, indent=2).encode()


class ArrayWriter:
    """Streams rows into the shard files of one array, from a shard boundary on.

    Nothing appears under a final name before `publish`; an instance that is dropped instead should
    be `discard`-ed so that its temporary files go.
    """

    def __init__(self, storage: LocalStorage, layout: ArrayLayout, first_shard_idx: int = 0):
        self._storage = storage
        self._layout = layout
        self._shard_idx = first_shard_idx
        self._rest = np.empty((0, *layout.row_shape), layout.dtype)
        self._shards: list[tuple[PendingFile, list[tuple[int, int]], list[int]]] = []

    def append(self, rows: Array) -> None:
        """Append rows. Shape: (n, *row_shape), any n."""
        layout = self._layout
        assert rows.shape[1:] == layout.row_shape, (rows.shape, layout)
        assert rows.dtype == np.dtype(layout.dtype), (rows.dtype, layout)
        if len(self._rest):
            rows = np.concatenate([self._rest, rows])
        num_whole = len(rows) - len(rows) % layout.chunk_rows
        for start in range(0, num_whole, layout.chunk_rows):
            self.append_chunk(encode_chunk(layout, rows[start : start + layout.chunk_rows]))
        # A copy, or the remainder would keep all rows alive.
        self._rest = rows[num_whole:].copy()

    def publish(self) -> dict[str, FileRecord]:
        """Write what remains, publish every file, and return their records by name."""
        layout = self._layout
        if len(self._rest):
            self.append_chunk(encode_chunk(layout, self._rest))
        records = {}
        for file, entries, sums in self._shards:
            absent = [(_ABSENT, _ABSENT)] * (layout.chunks_per_shard - len(entries))
            index = np.asarray(entries + absent, "<u8").tobytes()
            file.write(index + struct.pack("<I", crc32c(index)))
            records[file.name] = file.publish("".join(f"{s:08x}" for s in sums))
        return records

    def discard(self) -> None:
        """Remove temporary files; harmless after `publish`."""
        for file, _, _ in self._shards:
            file.discard()

    def append_chunk(self, payload: Bytes) -> None:
        """Append a whole chunk, as `encode_chunk` returns it; no row may be waiting for others."""
        layout = self._layout
        if not self._shards or len(self._shards[-1][1]) == layout.chunks_per_shard:
            shard_idx = self._shard_idx + len(self._shards)
            self._shards.append((self._storage.create(layout.shard_name(shard_idx)), [], []))
        file, entries, sums = self._shards[-1]
        checksum = crc32c(payload.data)
        entries.append((file.num_bytes, len(payload) + _CRC_BYTES))
        sums.append(checksum)
        file.write(payload.data)
        file.write(struct.pack("<I", checksum))


def encode_chunk(layout: ArrayLayout, rows: Array) -> Bytes:
    """Return the payload of a chunk: the rows, zeros up to a whole chunk, compressed or not.

    Shape: (n, *row_shape), at most a chunk of them -> (number of bytes,).
    """
    if len(rows) < layout.chunk_rows:
        whole = np.zeros((layout.chunk_rows, *layout.row_shape), layout.dtype)
        whole[: len(rows)] = rows
        rows = whole
    payload: Any = np.ascontiguousarray(rows, np.dtype(layout.dtype).newbyteorder("<"))
    if layout.compressed:
        payload = Zstd(_ZSTD_LEVEL).encode(payload)
    # A flat view: nothing that follows copies it, and hashing it releases the interpreter lock.
    return np.frombuffer(payload, np.uint8)


class ArrayReader:
    """Reads whole chunks of one array, each checked against its commit record.

    Safe to share between threads.
    """

    def __init__(
        self, storage: ReadStorage, layout: ArrayLayout, files: Mapping[str, FileRecord]
    ) -> None:
        self.layout = layout
        self._storage = storage
        self._files = files
        self._bounds: dict[int, list[int]] = {}

    def chunk(self, shard_idx: int, chunk_idx: int, *, memory: MemoryPool | None = None) -> Array:
        """Return a chunk, padding rows at the array's end cut off. Shape: (rows, *row_shape).

        Its rows lie in a block of `memory`, if that is given.
        """
        layout, name = self.layout, self.layout.shard_name(shard_idx)
        start, stop = self.chunk_range(shard_idx, chunk_idx)
        is_sound = partial(self._is_sound, name, chunk_idx)
        stored = self._read(name, start, stop - start, is_sound, f"chunk {chunk_idx}", memory)
        data: Any = stored[:-_CRC_BYTES]
        if layout.compressed:
            out = memory.take(layout.chunk_rows * layout.row_bytes) if memory else None
            data = Zstd().decode(data, out)
        rows = np.frombuffer(data, np.dtype(layout.dtype).newbyteorder("<"))
        first_row = shard_idx * layout.shard_rows + chunk_idx * layout.chunk_rows
        return rows.reshape(layout.chunk_rows, *layout.row_shape)[: layout.shape[0] - first_row]

    def _is_sound(self, name: str, chunk_idx: int, stored: Bytes) -> bool:
        expected = self._files[name].chunk_crc32c[8 * chunk_idx : 8 * chunk_idx + 8]
        return f"{_crc32c(stored):08x}" == expected

    def rows(self, start: int, stop: int) -> Array:
        """Return rows [start, stop), reading each chunk they touch once."""
        layout = self.layout
        rows = np.empty((stop - start, *layout.row_shape), layout.dtype)
        for chunk_idx in range(start // layout.chunk_rows, -(-stop // layout.chunk_rows)):
            first_row = chunk_idx * layout.chunk_rows
            chunk = self.chunk(*divmod(chunk_idx, layout.chunks_per_shard))
            part = chunk[max(start - first_row, 0) : stop - first_row]
            at = max(first_row - start, 0)
            rows[at : at + len(part)] = part
        return rows

    def all(self) -> Array:
        """Return the whole array; for arrays that fit in memory."""
        return self.rows(0, self.layout.shape[0])

    def row_table(self) -> RowTable:
        """Return the whole array for gathering rows, every chunk checked.

        A folder's files are mapped; anything else is read into memory.
        """
        layout, storage = self.layout, self._storage
        if layout.compressed or not isinstance(storage, LocalStorage):
            return RowTable.of(self.all())
        shards = [self._mapped(storage, shard_idx) for shard_idx in range(layout.num_shards)]
        return RowTable(shards, layout.shape, layout.dtype)

    def _mapped(self, storage: LocalStorage, shard_idx: int) -> Array:
        """Map a shard's chunks, once each is checked; see `RowTable`. Shape: (C, R)."""
        layout, name = self.layout, self.layout.shard_name(shard_idx)
        size = storage.size(name)
        if size is None:
            raise missing_file(f"{storage}/{name}")
        if size != self._files[name].num_bytes:
            raise self._corrupt(name, f"its size of {size:,} bytes")
        file = np.memmap(storage.root / name, np.uint8, "r")
        num_chunks = layout.num_chunks(shard_idx)
        stored_bytes = layout.chunk_rows * layout.row_bytes + _CRC_BYTES
        for chunk_idx in range(num_chunks):
            start, stop = self.chunk_range(shard_idx, chunk_idx)
            is_whole = stop - start == stored_bytes
            if not (is_whole and self._is_sound(name, chunk_idx, file[start:stop])):
                raise self._corrupt(name, f"chunk {chunk_idx}")
        rows = (f"V{layout.row_bytes}", (layout.chunk_rows,))
        chunks = file[: num_chunks * stored_bytes].view([("rows", *rows), ("crc", "<u4")])
        return chunks["rows"]

    def chunk_range(self, shard_idx: int, chunk_idx: int) -> tuple[int, int]:
        """Return the bytes [start, stop) of a shard that a chunk takes, its checksum included."""
        if shard_idx not in self._bounds:
            layout, name = self.layout, self.layout.shard_name(shard_idx)
            index_at = self._files[name].num_bytes - layout.index_bytes
            num_chunks = layout.num_chunks(shard_idx)

            def bounds_of(index: Bytes) -> list[int]:
                entries = index[:-_CRC_BYTES].view("<u8").reshape(-1, 2)[:num_chunks].tolist()
                return [0, *(offset + num_bytes for offset, num_bytes in entries)]

            def is_sound(index: Bytes) -> bool:
                # `ArrayWriter` puts chunks one after another, from the first byte to the index.
                bounds = bounds_of(index)
                offsets = index[:-_CRC_BYTES].view("<u8")[: 2 * num_chunks : 2].tolist()
                is_right = index[-_CRC_BYTES:].view("<u4")[0] == _crc32c(index)
                follows = offsets == bounds[:-1] and bounds == sorted(set(bounds))
                return bool(is_right) and follows and bounds[-1] == index_at

            index = self._read(name, index_at, layout.index_bytes, is_sound, "the chunk index")
            self._bounds[shard_idx] = bounds_of(index)
        bounds = self._bounds[shard_idx]
        return bounds[chunk_idx], bounds[chunk_idx + 1]

    def _read(
        self,
        name: str,
        start: int,
        num_bytes: int,
        is_sound: Callable[[Bytes], bool],
        what: str,
        memory: MemoryPool | None = None,
    ) -> Bytes:
        """Return a range of a file, once it is sound; errors call it `what`."""
        if start < 0:
            raise self._corrupt(name, what)
        block = memory.take(num_bytes) if memory else np.empty(num_bytes, np.uint8)
        check = RangeCheck(file_sha256=self._files[name].sha256, is_sound=is_sound)
        self._storage.read_into(block, name, start, check)
        if not is_sound(block):
            raise self._corrupt(name, what)
        return block

    def _corrupt(self, name: str, what: str) -> CacheCorruptError:
        return CacheCorruptError(
            f"{self._storage}/{name}: {what} is not what was committed (a damaged, truncated "
            f"or exchanged file). {MEND}"
        )


def weigh_array(layout: ArrayLayout, values: Array) -> int:
    """Return the bytes that an array's files take, without writing them.

    `values` are its rows, or a sample of them, looked at only if the array is compressed.
    """
    num_chunks = sum(layout.num_chunks(shard_idx) for shard_idx in range(layout.num_shards))
    num_rows, chunk_rows = layout.shape[0], layout.chunk_rows
    if not layout.compressed:
        payload_bytes = num_chunks * chunk_rows * layout.row_bytes
    else:
        payload_bytes = 0
        for start in range(0, len(values), chunk_rows):
            payload_bytes += len(encode_chunk(layout, values[start : start + chunk_rows]))
        payload_bytes = round(payload_bytes * num_rows / max(len(values), 1))
    return payload_bytes + num_chunks * _CRC_BYTES + layout.num_shards * layout.index_bytes


def _crc32c(stored: Bytes) -> int:
    """Return the CRC-32C of all but the last four bytes, which are a checksum themselves."""
    checksum: int = crc32c(stored[:-_CRC_BYTES].data)
    return checksum


def write_array(storage: LocalStorage, layout: ArrayLayout, values: Array) -> dict[str, FileRecord]:
    """Publish a whole array and its Zarr metadata; return the records of the files."""
    writer = ArrayWriter(storage, layout)
    try:
        writer.append(values.astype(layout.dtype, copy=False))
        return {**write_metadata(storage, layout), **writer.publish()}
    finally:
        writer.discard()


def write_metadata(storage: LocalStorage, layout: ArrayLayout) -> dict[str, FileRecord]:
    """Publish an array's ``zarr.json``."""
    name = names.metadata_file(layout.name)
    return {name: storage.ensure(name, layout.metadata())}
