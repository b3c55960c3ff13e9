"""How much memory and time planning takes at MJSynth + SynthText's size, and opening the result.

A synthetic LMDB-like source of 16 million short labels (90,000 distinct words) stands in for the
real ones: what is measured is our scan, filter, permutation and index, not a disk. Prints a table.

    python benchmarks/scan_scale.py [NUM_SAMPLES]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tabulate import tabulate

from clipocr.precompute.builder import scan
from clipocr.precompute.builder.index import write_index
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.json_record import encode_record
from clipocr.shared.cache.names import SEAL_NAME
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.records import Manifest, UnitRecord
from clipocr.shared.cache.shards import Array
from clipocr.shared.cache.spec import CacheSpec, ImageArraySpec, TeacherSpec, ViewSpec
from clipocr.shared.cache.storage import FileRecord, LocalStorage
from clipocr.shared.charset import LabelRules

NUM_WORDS = 90_000


class SyntheticCursor:
    """Walks keys and values in LMDB's order without an LMDB."""

    def __init__(self, num_samples: int, words: list[bytes], chosen: Array) -> None:
        self._num_samples, self._words, self._chosen = num_samples, words, chosen
        self._prefix = b""

    def set_range(self, prefix: bytes) -> bool:
        self._prefix = prefix
        return True

    def iternext(self) -> Iterator[tuple[bytes, bytes]]:
        image = bytes(1500)
        for idx in range(1, self._num_samples + 1):
            is_image = self._prefix == b"image-"
            value = image if is_image else self._words[self._chosen[idx - 1]]
            yield self._prefix + b"%09d" % idx, value


class SyntheticWords:
    """Stands in for `WordLmdb` and its environment and transaction, all in one."""

    def __init__(self, path: Path) -> None:
        rng = np.random.default_rng(0)
        letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", "S1")
        lengths = rng.integers(3, 13, NUM_WORDS)
        self._words = [rng.choice(letters, n).tobytes() for n in lengths]
        self._num_samples = int(path.name)
        self._chosen = rng.integers(0, NUM_WORDS, self._num_samples, dtype=np.uint32)
        self.env = self

    def __len__(self) -> int:
        return self._num_samples

    def begin(self, *, buffers: bool) -> SyntheticWords:
        assert buffers
        return self

    def __enter__(self) -> SyntheticWords:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def cursor(self) -> SyntheticCursor:
        return SyntheticCursor(self._num_samples, self._words, self._chosen)


def main(num_samples: int) -> None:
    teacher = TeacherSpec(
        model="ViT-B-16", weights="random:0", weights_sha256="0" * 64, activation="gelu",
        precision="fp32",
    )  # fmt: skip
    scan.WordLmdb = SyntheticWords  # type: ignore[misc, assignment]
    rules = LabelRules()
    with tempfile.TemporaryDirectory() as folder:
        before = peak_mb()
        started = time.perf_counter()
        found = scan.scan_sources({"MJST": Path(str(num_samples))}, rules)
        scanned = time.perf_counter()
        spec = CacheSpec(
            teacher=teacher, view=ViewSpec(), labels=rules, text_taps=(3, 6, 9), seed=0,
            images=tuple(
                ImageArraySpec(name=name, num_tokens=17, width=768, codec=Codec.parse("fp16"))
                for name in ("block3", "block6", "block9")
            ),
            sources=found.sources, num_rows=found.num_rows, unit_rows=16384, chunk_rows=256,
        )  # fmt: skip
        storage = LocalStorage(Path(folder))
        # Features are nothing to the index: fp16 has no tables.
        sample = SimpleNamespace(teacher=SimpleNamespace(device=torch.device("cpu")))
        seal(storage, write_index(storage, spec, found, sample))  # type: ignore[arg-type]
        planned = time.perf_counter()
        cache = FeatureCache.open(Path(folder))
        cache.rows(spec.num_units // 2)
        opened = time.perf_counter()
        rows = [
            ("scan and filter", f"{scanned - started:.1f} s"),
            ("permute and publish the index", f"{planned - scanned:.1f} s"),
            (
                f"open the sealed cache of {spec.num_units} units, read the rows of one",
                f"{opened - planned:.3f} s",
            ),
            ("peak memory, interpreter and source included", f"{peak_mb():,.0f} MB"),
            ("of that before the scan", f"{before:,.0f} MB"),
        ]
    print(f"{num_samples:,} samples, {len(found.labels):,} unique labels")
    print(tabulate(rows, headers=["step", "cost"], tablefmt="github", disable_numparse=True))


def seal(storage: LocalStorage, manifest: Manifest) -> None:
    """Seal a cache whose units are records only: opening reads nothing else of them."""
    spec = manifest.spec
    commits = {}
    for unit_idx in range(spec.num_units):
        files = {
            layout.shard_name(unit_idx): FileRecord(
                num_bytes=1, sha256="0" * 64, chunk_crc32c="0" * 8 * layout.chunks_per_shard
            )
            for layout in spec.image_layouts(0).values()
        }
        record = UnitRecord(
            view_idx=0,
            unit_idx=unit_idx,
            cache_id=manifest.cache_id,
            files=files,
            rows=spec.unit_range(unit_idx),
            keys_sha256="",
        )
        commits[record.name] = record
    storage.write(SEAL_NAME, encode_record({"commits": commits}))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16_000_000)
