"""What a batch cannot do without: each pass over its bytes by itself, and the loader beside them.

    python benchmarks/loader_floor.py CACHE [--batch-size 256]

Processor time in microseconds per sample, of one thread, chunk after chunk, so that caches of the
processor are as cold as in a run; medians over rounds. The loader's own is that of all its threads
over a whole epoch. Their difference is what Python, locks and planning cost; divided by the cores
it is the time that a sample takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from crc32c import crc32c
from numcodecs import Zstd
from tabulate import tabulate

from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.shards import Array, ArrayReader
from clipocr.train.data.cached_words import open_cache
from clipocr.train.data.order import NUM_LANES

MOST_CHUNKS = 64
"""One per lane, as a run holds them."""


class Passes:
    """The passes over some whole chunks of a cache."""

    def __init__(self, cache: FeatureCache, batch_size: int) -> None:
        self.cache, self.batch_size = cache, batch_size
        self.readers = {key: cache.image_reader(0, key) for key in cache.spec.image_layouts(0)}
        whole = cache.spec.num_rows // cache.spec.chunk_rows
        per_unit = cache.spec.unit_rows // cache.spec.chunk_rows
        self.chunks = [divmod(idx, per_unit) for idx in range(min(whole, MOST_CHUNKS))]
        self.num_rows = len(self.chunks) * cache.spec.chunk_rows
        self.stored = {key: [self._stored(r, *at) for at in self.chunks] for key, r in self.items()}
        self.rows = {key: [r.chunk(*at) for at in self.chunks] for key, r in self.items()}
        largest = max(block.nbytes for blocks in self.stored.values() for block in blocks)
        self.block = np.zeros(largest, np.uint8)
        self.pixels = np.zeros_like(self.rows["pixels"][0])
        self.out = {
            key: np.zeros((batch_size, *r.layout.row_shape), r.layout.dtype)
            for key, r in self.items()
        }
        order = np.random.default_rng(0)
        rows_per_lane = max(batch_size // NUM_LANES, 1)
        self.places = order.integers(0, cache.spec.chunk_rows, (NUM_LANES, rows_per_lane))
        self.text = cache.text_table("char-36")
        self.text_rows = {name: table[:] for name, table in self.text.arrays.items()}
        self.text_out = np.zeros(
            (batch_size * self.text.spec.num_positions, self.text.spec.arrays[0].width),
            np.float16,
        )
        self.text_ids = order.integers(0, len(self.text.strings), (self.num_batches, batch_size))

    @property
    def num_batches(self) -> int:
        return self.num_rows // self.batch_size

    def items(self) -> list[tuple[str, ArrayReader]]:
        return list(self.readers.items())

    def read(self) -> None:
        for key, reader in self.items():
            for stored, (unit_idx, chunk_idx) in zip(self.stored[key], self.chunks, strict=True):
                name = reader.layout.shard_name(unit_idx)
                start, _ = reader.chunk_range(unit_idx, chunk_idx)
                self.cache.storage.read_into(self.block[: len(stored)], name, start)

    def check(self) -> None:
        for blocks in self.stored.values():
            for block in blocks:
                crc32c(block)

    def decompress(self) -> None:
        for block in self.stored["pixels"]:
            Zstd().decode(block[:-4], self.pixels)

    def gather(self) -> None:
        for batch_idx in range(self.num_batches):
            for lane, places in enumerate(self.places):
                chunk_idx = (batch_idx + lane) % len(self.chunks)
                start = lane * len(places)
                for key, out in self.out.items():
                    _take(self.rows[key][chunk_idx], places, out[start : start + len(places)])

    def look_up_text(self) -> None:
        for text_ids in self.text_ids:
            num_positions = max(len(self.text.strings[i]) for i in text_ids) + 1
            nodes = self.text.nodes[text_ids, :num_positions].ravel()
            for array in self.text.spec.arrays:
                if array.rows == "prefix":
                    table = self.text_rows[array.name]
                    _take(table, nodes, self.text_out[: len(nodes)])

    def _stored(self, reader: ArrayReader, unit_idx: int, chunk_idx: int) -> Array:
        start, stop = reader.chunk_range(unit_idx, chunk_idx)
        block = np.empty(stop - start, np.uint8)
        self.cache.storage.read_into(block, reader.layout.shard_name(unit_idx), start)
        return block


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cache = FeatureCache.open(args.cache)
    passes = Passes(cache, args.batch_size)
    loader = open_cache(args.cache).loader(
        batch_size=args.batch_size, images=cache.spec.image_names,
        text=passes.text.spec.array_names, views=1, device="cpu",
    )  # fmt: skip
    works: list[tuple[str, int, Callable[[], object]]] = [
        ("read", passes.num_rows, passes.read),
        ("CRC-32C", passes.num_rows, passes.check),
        ("zstd, pixels", passes.num_rows, passes.decompress),
        ("rows into batches", passes.num_rows, passes.gather),
        ("text features into batches", passes.num_rows, passes.look_up_text),
        ("the loader", loader.num_rows, lambda: [None for _ in loader.encoded_batches(0)]),
    ]
    rounds = [
        [1e6 * _processor_seconds(work) / num_rows for _, num_rows, work in works]
        for _ in range(args.rounds + 1)
    ][1:]
    micros = [statistics.median(times) for times in zip(*rounds, strict=True)]
    table = [(name, f"{micro:.1f}") for (name, _, _), micro in zip(works, micros, strict=True)]
    table.insert(-1, ("together", f"{sum(micros[:-1]):.1f}"))
    print(tabulate(table, headers=["", "us per sample"], tablefmt="github", disable_numparse=True))


def _take(table: Array, places: Array, out: Array) -> None:
    np.take(table, places, axis=0, out=out, mode="wrap")


def _processor_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
