"""The rows of a feature cache in other people's formats, each set up as its own pages advise.

Every store holds the same bytes: a record of a row is its text number, its taps as the codec left
them and its pixels, filtered and zstd-compressed. Each is read in shuffled batches, pixels
decompressed, by one worker process per core, workers kept between epochs. Where its pages leave a
choice, the faster one is taken:

    WebDataset          one member per sample (a tar member costs 50 us, whatever it holds); shards
                        of 64 MB, all of them shuffled, a shuffle buffer of 1,000 samples and
                        batching inside the workers; not shuffled again between workers
    MosaicML Streaming  MDS shards of 64 MB, one ``bytes`` column, local files, ``shuffle`` with the
                        default ``py1e``; ``batch_size`` told to the dataset, predownload as it is
    LMDB of arrays      read-only, no lock, no readahead, buffers instead of copies, opened in the
                        worker; rows in fully random order
    HDF5                one dataset per array, chunks of as many rows as in the cache, pixels by
                        LZF (h5py's own fast filter), each worker with a handle of its own, whole
                        chunks read at once; rows are shuffled within a chunk only

No one of them checks what it reads, nor looks up the text features that `CacheLoader` puts into
its batches.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from numcodecs import Zstd
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.shards import Array
from clipocr.shared.distribution import install_command

NUM_WORKERS = os.cpu_count() or 1
_SHARD_BYTES = 1 << 26
_SHUFFLE_BUFFER = 1000

Sample = dict[str, Any]
Batches = Callable[[], Iterator[Mapping[str, torch.Tensor]]]

# A tensor over bytes that Python will not let change; collating copies it at once.
warnings.filterwarnings("ignore", "The given (NumPy array|buffer) is not writable")


def require_rivals() -> None:
    """Import them all, or say how to come by them."""
    missing = [
        package
        for package in ("webdataset", "streaming", "h5py")
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise SystemExit(
            f"this benchmark needs {', '.join(missing)}; install with: {install_command('bench')}"
        )


@dataclass(frozen=True, kw_only=True)
class Record:
    """How a row becomes bytes, and back."""

    taps: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
    """Type and shape of each tap's row."""
    pixels: tuple[int, ...]

    @classmethod
    def of(cls, cache: FeatureCache) -> Record:
        layouts = dict(cache.spec.image_layouts(0))
        pixels = layouts.pop("pixels")
        taps = {key: (np.dtype(a.dtype), a.row_shape) for key, a in layouts.items()}
        return cls(taps=taps, pixels=pixels.row_shape)

    def encode(self, row: Mapping[str, Array]) -> bytes:
        taps = b"".join(row[key].tobytes() for key in self.taps)
        return row["text"].tobytes() + taps + Zstd(1).encode(np.ascontiguousarray(row["pixels"]))

    def decode(self, record: bytes | memoryview) -> Sample:
        sample: Sample = {"text": np.frombuffer(record, np.int32, 1)}
        at = 4
        for key, (dtype, shape) in self.taps.items():
            size = int(np.prod(shape))
            sample[key] = np.frombuffer(record, dtype, size, at).reshape(shape)
            at += size * dtype.itemsize
        pixels = Zstd().decode(np.frombuffer(record, np.uint8, offset=at))
        sample["pixels"] = np.frombuffer(pixels, np.uint8).reshape(self.pixels)
        return sample


def chunks_of(cache: FeatureCache) -> Iterator[dict[str, Array]]:
    """Yield ``text``, ``pixels`` and taps of every chunk, in order."""
    of_label = cache.text_table("char-36", ()).of_label
    readers = {key: cache.image_reader(0, key) for key in cache.spec.image_layouts(0)}
    for unit_idx in cache.units():
        text = of_label[cache.rows(unit_idx)["label"]]
        for chunk_idx in range(readers["pixels"].layout.num_chunks(unit_idx)):
            chunk = {key: reader.chunk(unit_idx, chunk_idx) for key, reader in readers.items()}
            start = chunk_idx * cache.spec.chunk_rows
            yield {"text": text[start : start + len(chunk["pixels"])], **chunk}


def records_of(cache: FeatureCache) -> Iterator[bytes]:
    """Yield the record of every row, in order."""
    record = Record.of(cache)
    for chunk in chunks_of(cache):
        for idx in range(len(chunk["text"])):
            yield record.encode({key: rows[idx : idx + 1] for key, rows in chunk.items()})


def web_dataset(cache: FeatureCache, out: Path, batch_size: int) -> Batches:
    import webdataset as wds

    out.mkdir()
    with wds.ShardWriter(f"{out}/%05d.tar", maxsize=_SHARD_BYTES, verbose=0) as writer:
        for idx, record in enumerate(records_of(cache)):
            writer.write({"__key__": f"{idx:09d}", "bin": record})
    shards, decode = sorted(map(str, out.glob("*.tar"))), Record.of(cache).decode
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .shuffle(_SHUFFLE_BUFFER)
        .map(lambda sample: decode(sample["bin"]))
        .batched(batch_size, collation_fn=default_collate)
    )
    loader = wds.WebLoader(
        dataset, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True
    )
    return lambda: iter(loader)


def mosaic_streaming(cache: FeatureCache, out: Path, batch_size: int) -> Batches:
    import streaming

    with streaming.MDSWriter(
        out=str(out), columns={"record": "bytes"}, size_limit=_SHARD_BYTES
    ) as writer:
        for record in records_of(cache):
            writer.write({"record": record})
    streaming.base.util.clean_stale_shared_memory()
    decode = Record.of(cache).decode

    class Rows(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> Sample:
            return decode(super().__getitem__(at)["record"])

    dataset = Rows(local=str(out), shuffle=True, batch_size=batch_size)
    loader = streaming.StreamingDataLoader(
        dataset, batch_size=batch_size, num_workers=NUM_WORKERS, persistent_workers=True
    )
    return lambda: iter(loader)


class _LmdbRows(Dataset[Sample]):
    def __init__(self, path: Path, num_rows: int, record: Record) -> None:
        self._path, self._num_rows, self._record = path, num_rows, record
        self._txn: lmdb.Transaction | None = None

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, idx: int) -> Sample:
        if self._txn is None:
            env = lmdb.open(str(self._path), readonly=True, lock=False, readahead=False)
            self._txn = env.begin(buffers=True)
        return self._record.decode(self._txn.get(b"%09d" % idx))


def lmdb_of_arrays(cache: FeatureCache, out: Path, batch_size: int) -> Batches:
    num_rows = cache.spec.num_rows
    # Values above a page take whole pages.
    map_size = 2 * cache.num_bytes() + num_rows * (1 << 14)
    with lmdb.open(str(out), map_size=map_size) as env:
        records = records_of(cache)
        for start in range(0, num_rows, 1024):
            with env.begin(write=True) as txn:
                for idx in range(start, min(start + 1024, num_rows)):
                    txn.put(b"%09d" % idx, next(records), append=True)
    loader = DataLoader(
        _LmdbRows(out, num_rows, Record.of(cache)),
        batch_size,
        shuffle=True,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
    )
    return lambda: iter(loader)


class _Hdf5Batches(IterableDataset[dict[str, torch.Tensor]]):
    def __init__(self, path: Path, num_chunks: int, chunk_rows: int, batch_size: int) -> None:
        self._path, self._num_chunks, self._chunk_rows = path, num_chunks, chunk_rows
        self._batch_size, self._epoch = batch_size, 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        import h5py

        worker = get_worker_info()
        assert worker is not None
        self._epoch += 1
        order = np.random.default_rng(self._epoch)
        with h5py.File(self._path, "r") as file:
            for chunk_idx in order.permutation(self._num_chunks)[worker.id :: worker.num_workers]:
                rows = slice(chunk_idx * self._chunk_rows, (chunk_idx + 1) * self._chunk_rows)
                chunk = {key: torch.from_numpy(file[key][rows]) for key in file}
                places = torch.from_numpy(order.permutation(len(chunk["text"])))
                for part in places.split(self._batch_size):
                    yield {key: values[part] for key, values in chunk.items()}


def hdf5(cache: FeatureCache, out: Path, batch_size: int) -> Batches:
    import h5py

    chunk_rows, num_rows = cache.spec.chunk_rows, cache.spec.num_rows
    with h5py.File(out, "w", libver="latest") as file:
        row = 0
        for chunk in chunks_of(cache):
            stop = row + len(chunk["text"])
            for key, values in chunk.items():
                if key not in file:
                    file.create_dataset(
                        key,
                        (num_rows, *values.shape[1:]),
                        values.dtype,
                        chunks=(chunk_rows, *values.shape[1:]),
                        compression="lzf" if key == "pixels" else None,
                    )
                file[key][row:stop] = values
            row = stop
    loader = DataLoader(
        _Hdf5Batches(out, -(-num_rows // chunk_rows), chunk_rows, batch_size),
        batch_size=None,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
    )
    return lambda: iter(loader)


RIVALS: dict[str, Callable[[FeatureCache, Path, int], Batches]] = {
    "WebDataset": web_dataset,
    "MosaicML Streaming": mosaic_streaming,
    "LMDB of arrays": lmdb_of_arrays,
    "HDF5": hdf5,
}
