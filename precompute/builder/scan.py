"""Find the samples of all sources, filter their labels, and put them in their lasting order.

A sample is known by (source, LMDB index), never by its position in a filtered list: positions
change with the filter, and did in PARSeq's loader.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
import numpy.typing as npt

from ...shared.cache.records import REJECTION_REASONS
from ...shared.cache.shards import Array
from ...shared.cache.spec import SourceSpec
from ...shared.charset import LabelProblem, LabelRules
from ...shared.data.folders import as_text
from ...shared.data.word_lmdb import WordLmdb
from ...shared.errors import DataError
from ...shared.hashing import mix
from ...shared.progress import progress_bar
from .pictures import ImageFolder, PictureSource

_ABSENT = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Scan:
    """All samples of all sources, sorted into rows and rejects."""

    sources: tuple[SourceSpec, ...]
    pictures: Mapping[str, Path | PictureSource]
    """Where the pictures of each source are on this machine, by name: an LMDB, or something else
    that yields them."""
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
        source, lmdb_index = self.rows["source"], self.rows["lmdb_index"]
        hashes = sample_hashes(seed, list(self.pictures), source, lmdb_index)
        return np.argsort(hashes, kind="stable")


def scan_sources(sources: Mapping[str, Path], rules: LabelRules) -> Scan:
    """Read every key and label of every source once, and no image."""
    label_ids: dict[str, int] = {}
    scanned = [_scan_source(name, path, rules, label_ids) for name, path in sources.items()]
    specs, verdicts = zip(*scanned, strict=True)
    scan = _sorted(specs, sources, verdicts, list(label_ids))
    if not label_ids:
        look = "look at them with: clipocr data check"
        raise DataError(_why_nothing_is_usable(sources.values(), scan, rules, look))
    return scan


def scan_words(path: Path, rules: LabelRules) -> Scan:
    """Read the lines of a file, each of them a label without a picture."""
    try:
        content = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}") from e
    lines = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    label_ids: dict[str, int] = {}
    verdicts = np.array([_judge(line, rules, label_ids) for line in lines], np.int32)
    digest = hashlib.sha256(b"\n".join(lines)).hexdigest()
    source = SourceSpec(name=as_text(path.name), num_samples=len(lines), digest=digest)
    scan = _sorted([source], {source.name: path}, [verdicts], list(label_ids))
    if not label_ids:
        raise DataError(_why_nothing_is_usable([path], scan, rules))
    return scan


def scan_images(images: ImageFolder) -> Scan:
    """Take every image of a folder for a row, whose label is the name of its file."""
    digest = hashlib.sha256("".join(f"{name}\0" for name in images.names).encode())
    for name in images.names:
        try:
            num_bytes = (images.root / name).stat().st_size
        except OSError:  # A link to nothing: a bad image.
            num_bytes = 0
        digest.update(num_bytes.to_bytes(8, "little"))
    source = SourceSpec(name="images", num_samples=len(images), digest=digest.hexdigest())
    verdicts = np.arange(len(images), dtype=np.int32)
    labels = [as_text(name) for name in images.names]
    return _sorted([source], {source.name: images}, [verdicts], labels)


def _sorted(
    sources: Sequence[SourceSpec],
    pictures: Mapping[str, Path | PictureSource],
    verdicts: Sequence[npt.NDArray[np.int32]],
    labels: list[str],
) -> Scan:
    """Return the scan of samples whose label ids, or `_rejection`s, are known."""
    verdict = np.concatenate(verdicts)
    rows = _columns([of_source >= 0 for of_source in verdicts])
    rejected = _columns([of_source < 0 for of_source in verdicts])
    return Scan(
        sources=tuple(sources),
        pictures=pictures,
        rows=rows | {"label": verdict[verdict >= 0].view(np.uint32)},
        labels=labels,
        rejected=rejected | {"reason": (-1 - verdict[verdict < 0]).astype(np.uint8)},
    )


def _columns(chosen: Sequence[npt.NDArray[np.bool_]]) -> dict[str, Array]:
    """Return which samples were chosen, of each source."""
    found = [np.flatnonzero(of_source).astype(np.uint32) for of_source in chosen]
    sources = np.arange(len(found), dtype=np.uint16)
    return {
        "source": np.repeat(sources, [len(of_source) for of_source in found]),
        "lmdb_index": np.concatenate(found) + np.uint32(1),
    }


def _why_nothing_is_usable(
    paths: Iterable[Path], scan: Scan, rules: LabelRules, *advice: str
) -> str:
    reasons = Counter(REJECTION_REASONS[code] for code in scan.rejected["reason"])
    listed = ", ".join(f"{reason}: {n:,}" for reason, n in reasons.most_common())
    if not rules.keep_unicode and reasons["empty label"]:
        of_unicode = "pass --keep-unicode if they are of another script"
        advice = (f"labels are reduced to ASCII, so {of_unicode}", *advice)
    found = f"no usable sample in {', '.join(map(str, paths))} ({listed or 'no samples'})"
    return "; ".join([found, *([", or ".join(advice)] if advice else [])])


def _rejection(reason: str) -> int:
    return -1 - REJECTION_REASONS.index(reason)


def _scan_source(
    name: str, path: Path, rules: LabelRules, label_ids: dict[str, int]
) -> tuple[SourceSpec, npt.NDArray[np.int32]]:
    """Return a source, and for each of its samples the id of its label, or its `_rejection`."""
    source = WordLmdb(path)
    num_samples = len(source)
    image_bytes = np.full(num_samples, _ABSENT, np.uint32)
    verdicts = np.full(num_samples, _rejection("missing label"), np.int32)
    digest = hashlib.sha256(num_samples.to_bytes(8, "little"))
    # Words repeat, so most labels are known already.
    known: dict[bytes, int] = {}
    try:
        with source.env.begin(buffers=True) as txn:
            for sample_idx, value in _items(txn, b"image-", num_samples):
                image_bytes[sample_idx - 1] = len(value)
            digest.update(image_bytes.tobytes())
            labels = _items(txn, b"label-", num_samples)
            for sample_idx, value in progress_bar(
                labels, total=num_samples, desc=f"scanning {name}", unit="label"
            ):
                raw = bytes(value)
                digest.update(b"%d:%d:" % (sample_idx, len(raw)))
                digest.update(raw)
                if image_bytes[sample_idx - 1] == _ABSENT:
                    verdicts[sample_idx - 1] = _rejection("missing image")
                    continue
                verdict = known.get(raw)
                if verdict is None:
                    verdict = known[raw] = _judge(raw, rules, label_ids)
                verdicts[sample_idx - 1] = verdict
    except lmdb.Error as e:
        raise DataError(f"{path} cannot be read to its end: {e}; it may be truncated") from e
    spec = SourceSpec(name=name, num_samples=num_samples, digest=digest.hexdigest())
    return spec, verdicts


def _judge(raw: bytes, rules: LabelRules, label_ids: dict[str, int]) -> int:
    try:
        label = rules.apply(raw.decode())
    except UnicodeDecodeError:
        label = LabelProblem.NOT_UTF8
    if isinstance(label, LabelProblem):
        return _rejection(label.value)
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


def hash_keys(rows: Mapping[str, Array]) -> str:
    """Return the digest of rows' (source, LMDB index) pairs, as commit records state it."""
    digest = hashlib.sha256()
    for key in ("source", "lmdb_index"):
        digest.update(rows[key].astype("<u4").tobytes())
    return digest.hexdigest()
