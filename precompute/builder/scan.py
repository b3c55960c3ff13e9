"""Find the samples of all sources, filter their labels, and put them in their lasting order.

A sample is known by (source, LMDB index), never by its position in a filtered list: positions
change with the filter, and did in PARSeq's loader.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ...shared.cache.records import REJECTION_REASONS
from ...shared.cache.shards import Array
from ...shared.cache.spec import SourceSpec
from ...shared.charset import LabelProblem, LabelRules
from ...shared.data.word_lmdb import WordLmdb
from ...shared.errors import DataError
from ...shared.hashing import mix
from .views import ChunkRows

_ABSENT = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Scan:
    """All samples of all sources, sorted into rows and rejects."""

    sources: tuple[SourceSpec, ...]
    paths: tuple[Path, ...]
    """Where each source is on this machine."""
    rows: dict[str, Array]
    """The columns of `CacheSpec.row_layouts` by name, rows in source order. Shape: (N,) each."""
    labels: list[str]
    """Unique labels after `LabelRules`, in order of first appearance; ``label`` points here."""
    rejected: dict[str, Array]
    """The columns of `Manifest.rejected_layouts` by name."""

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.rows["source"])

    def order(self, seed: int) -> npt.NDArray[np.int64]:
        """Return the rows in their lasting order, as indexes into the columns. Shape: (N,)."""
        names = [source.name for source in self.sources]
        hashes = sample_hashes(seed, names, self.rows["source"], self.rows["lmdb_index"])
        return np.argsort(hashes, kind="stable")


def scan_sources(sources: Mapping[str, Path], rules: LabelRules) -> Scan:
    """Read every key and label of every source once, and no image."""
    label_ids: dict[str, int] = {}
    columns = _Columns()
    specs = [
        _scan_source(source_idx, name, path, rules, label_ids, columns)
        for source_idx, (name, path) in enumerate(sources.items())
    ]
    if not label_ids:
        raise DataError(_why_nothing_is_usable(list(sources.values()), columns, rules))
    return Scan(
        sources=tuple(specs),
        paths=tuple(sources.values()),
        rows={key: np.asarray(column) for key, column in columns.rows.items()},
        labels=list(label_ids),
        rejected={key: np.asarray(column) for key, column in columns.rejected.items()},
    )


def _why_nothing_is_usable(paths: Sequence[Path], columns: _Columns, rules: LabelRules) -> str:
    reasons = Counter(REJECTION_REASONS[code] for code in columns.rejected["reason"])
    listed = ", ".join(f"{reason}: {n:,}" for reason, n in reasons.most_common())
    unicode_hint = (
        "labels are reduced to ASCII, so pass --keep-unicode if they are of another script, or "
        if not rules.keep_unicode and reasons["empty label"]
        else ""
    )
    return (
        f"no usable sample in {', '.join(map(str, paths))} ({listed or 'no samples'}); "
        f"{unicode_hint}look at them with: clipocr data check"
    )


class _Columns:
    """Growing columns in machine types: 16 million rows in 160 MB, not in Python objects."""

    def __init__(self) -> None:
        self.rows = {"source": array("H"), "lmdb_index": array("I"), "label": array("I")}
        self.rejected = {"source": array("H"), "lmdb_index": array("I"), "reason": array("B")}

    def keep(self, source_idx: int, sample_idx: int, label_id: int) -> None:
        self.rows["source"].append(source_idx)
        self.rows["lmdb_index"].append(sample_idx)
        self.rows["label"].append(label_id)

    def reject(self, source_idx: int, sample_idx: int, reason: str) -> None:
        values = source_idx, sample_idx, REJECTION_REASONS.index(reason)
        for column, value in zip(self.rejected.values(), values, strict=True):
            column.append(value)


def _scan_source(
    source_idx: int,
    name: str,
    path: Path,
    rules: LabelRules,
    label_ids: dict[str, int],
    columns: _Columns,
) -> SourceSpec:
    source = WordLmdb(path)
    num_samples = len(source)
    if num_samples > source.num_keys:
        raise DataError(
            f"{path}: num-samples is {num_samples:,}, but the LMDB has only {source.num_keys:,} "
            "keys; it is another set's count, or the LMDB was only partly written"
        )
    image_bytes = np.full(num_samples, _ABSENT, np.uint32)
    digest = hashlib.sha256(num_samples.to_bytes(8, "little"))
    # Raw label -> its id or why it is rejected; words repeat, so most samples take this path.
    known: dict[bytes, int | LabelProblem] = {}
    try:
        with source.env.begin(buffers=True) as txn:
            for sample_idx, value in _items(txn, b"image-", num_samples):
                image_bytes[sample_idx - 1] = len(value)
            digest.update(image_bytes.tobytes())
            expected_idx = 1
            progress = tqdm(
                _items(txn, b"label-", num_samples),
                total=num_samples,
                desc=f"scanning {name}",
                unit="label",
                mininterval=0.5,
            )
            for sample_idx, value in progress:
                for missing_idx in range(expected_idx, sample_idx):
                    columns.reject(source_idx, missing_idx, "missing label")
                expected_idx = sample_idx + 1
                raw = bytes(value)
                digest.update(b"%d:%d:" % (sample_idx, len(raw)))
                digest.update(raw)
                if image_bytes[sample_idx - 1] == _ABSENT:
                    columns.reject(source_idx, sample_idx, "missing image")
                    continue
                verdict = known.get(raw)
                if verdict is None:
                    verdict = known[raw] = _judge(raw, rules, label_ids)
                if isinstance(verdict, LabelProblem):
                    columns.reject(source_idx, sample_idx, verdict.value)
                else:
                    columns.keep(source_idx, sample_idx, verdict)
            for missing_idx in range(expected_idx, num_samples + 1):
                columns.reject(source_idx, missing_idx, "missing label")
    except lmdb.Error as e:
        raise DataError(f"{path} cannot be read to its end: {e}; it may be truncated") from e
    return SourceSpec(name=name, num_samples=num_samples, digest=digest.hexdigest())


def _judge(raw: bytes, rules: LabelRules, label_ids: dict[str, int]) -> int | LabelProblem:
    try:
        label = rules.apply(raw.decode())
    except UnicodeDecodeError:
        return LabelProblem.NOT_UTF8
    if isinstance(label, LabelProblem):
        return label
    return label_ids.setdefault(label, len(label_ids))


def _items(
    txn: lmdb.Transaction, prefix: bytes, num_samples: int
) -> Iterator[tuple[int, memoryview]]:
    """Yield (sample index, value) of the keys with `prefix`, in order, up to `num_samples`."""
    cursor = txn.cursor()
    if not cursor.set_range(prefix):
        return
    for key, value in cursor.iternext():
        raw_key = bytes(key)
        if not raw_key.startswith(prefix):
            return
        suffix = raw_key[len(prefix) :]
        # Nine digits, as `WordLmdb` asks for an image.
        if len(suffix) == 9 and suffix.isdigit() and 1 <= int(suffix) <= num_samples:
            yield int(suffix), memoryview(value)


def sample_hashes(
    seed: int, names: Sequence[str], source: Array, lmdb_index: Array
) -> npt.NDArray[np.uint64]:
    """Return a well-mixed number per sample, from the seed, the source's name and its LMDB index.

    It orders the rows, and does not depend on which other sources there are. Shape: (N,).
    """
    digests = [hashlib.sha256(name.encode()).digest() for name in names]
    name_keys = np.array([int.from_bytes(d[:8], "little") for d in digests], np.uint64)
    return mix(seed, name_keys[source], lmdb_index)


def rows_of_views(
    seed: int, sources: Sequence[SourceSpec], view_idx: int, source: Array, lmdb_index: Array
) -> ChunkRows:
    """Return rows as what their views are made of."""
    names = [spec.name for spec in sources]
    return ChunkRows(
        view_idx=view_idx,
        sources=source.tolist(),
        lmdb_indexes=lmdb_index.tolist(),
        hashes=sample_hashes(seed, names, source, lmdb_index).tolist(),
    )


def hash_keys(rows: Mapping[str, Array]) -> str:
    """Return the digest of rows' (source, LMDB index) pairs, as commit records state it."""
    digest = hashlib.sha256()
    for key in ("source", "lmdb_index"):
        digest.update(rows[key].astype("<u4").tobytes())
    return digest.hexdigest()
