"""`clipocr cache build`: from LMDBs to a sealed feature cache.

    scan ──► index ──► views ──► image taps ──► codec ──► unit ──► seal
                └────► unique labels ──► characters ──► text taps ──► text table ──┘

Each step ends in a published record and is skipped when its record is there, so running the same
command again finishes what is missing. Shapes: N rows, B rows of a chunk.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..shared.arrays import GROUP_METADATA, Array, encode_strings, write_array, write_metadata
from ..shared.cache import FeatureCache, read_commits, read_manifest, unit_name
from ..shared.charset import Charset, LabelRules
from ..shared.codecs import feature_codec
from ..shared.errors import CacheMismatchError, UsageError
from ..shared.records import encode_record, require_equal
from ..shared.schema import (
    MANIFEST_NAME,
    SEAL_NAME,
    CacheSpec,
    Commit,
    Manifest,
    SourceSpec,
    TeacherSpec,
    ViewSpec,
)
from ..shared.storage import FileRecord, LocalStorage
from ..shared.words import WordLmdb, find_named_lmdbs
from .scan import Scan, sample_hashes, scan_sources
from .teacher import Teacher, load_teacher
from .text import build_text_table
from .units import UnitBuilder

_GROUPS = ("", "rows", "labels", "rejected", "image", "image/view0", "text")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What `clipocr cache build` was asked for."""

    data: tuple[Path, ...]
    """Roots below which the LMDBs are."""
    out: Path
    teacher: str
    """``MODEL/WEIGHTS``."""
    activation: str | None = None
    """Only for a weights file that does not say; see `load_teacher`."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (devices are immutable)
    precision: str | None = None
    """None: what the cache was begun with, else fp16 on CUDA and fp32 on CPU."""
    image_taps: tuple[int, ...] = (3, 6, 9)
    text_taps: tuple[int, ...] = (3, 6, 9)
    charset: Charset
    labels: LabelRules = LabelRules()  # noqa: RUF009  (frozen)
    codec: str = "fp16"
    seed: int = 0
    unit_rows: int = 16384
    chunk_rows: int = 256
    num_workers: int = 0
    """Processes that decode images; 0: a thread of this process."""

    def __post_init__(self) -> None:
        if self.chunk_rows < 1 or self.unit_rows < 1 or self.unit_rows % self.chunk_rows:
            raise UsageError(
                f"unit rows {self.unit_rows} is not a multiple of chunk rows {self.chunk_rows}"
            )
        feature_codec(self.codec)


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build did."""

    cache: FeatureCache
    num_rows_built: int
    """0 when nothing was missing."""
    num_bad_rows: int
    """Bad images among all rows of the cache."""
    image_seconds: float
    """Time spent on units."""


def build_cache(config: BuildConfig) -> BuildSummary:
    """Build a cache, finish a half-built one, or find that nothing is missing.

    Raises:
        DataError: a source cannot be used.
        TeacherError: CLIP weights cannot be had.
        CacheMismatchError: there is a cache at `config.out`, but of something else.
    """
    storage = LocalStorage(config.out)
    sources = find_named_lmdbs(config.data)
    manifest = read_manifest(storage)
    if manifest is not None:
        _require_same_request(config, sources, manifest)
        commits = read_commits(storage, manifest)
        if _missing_units(manifest, commits) or not _has_text(commits, config.charset):
            # Something will be written, so what it is made from must be exactly what it was.
            teacher = _load_teacher(config, manifest)
            scan = scan_sources(sources, config.labels)
            _require_equal_spec(manifest.spec, _spec(config, teacher.spec, scan), config.out)
            storage.sweep()
        else:
            teacher = None
    else:
        _require_free(config.out)
        teacher = _load_teacher(config, None)
        longest = teacher.context_length - 2
        if config.labels.max_label_length > longest:
            raise UsageError(
                f"max label length is {config.labels.max_label_length}, but the text encoder of "
                f"{config.teacher} has room for {longest} characters"
            )
        scan = scan_sources(sources, config.labels)
        manifest = _write_index(storage, _spec(config, teacher.spec, scan), scan)
        commits = {}
    started, num_rows_built = time.perf_counter(), 0
    if teacher is not None:
        (storage.root / SEAL_NAME).unlink(missing_ok=True)
        cache = FeatureCache(storage, manifest, commits)
        if not _has_text(commits, config.charset):
            labels = cache.labels()
            commit = build_text_table(storage, manifest, labels, config.charset, teacher)
            cache.publish(commit)
        started = time.perf_counter()
        builder = UnitBuilder(cache, teacher, tuple(sources.values()), config.num_workers)
        num_rows_built = builder.build(_missing_units(manifest, commits))
    _seal_if_complete(storage, manifest, config.charset)
    units = [c for c in commits.values() if c.text is None]
    return BuildSummary(
        cache=FeatureCache(storage, manifest, commits),
        num_rows_built=num_rows_built,
        num_bad_rows=sum(len(c.bad_rows) for c in units),
        image_seconds=time.perf_counter() - started,
    )


def _missing_units(manifest: Manifest, commits: Mapping[str, Commit]) -> list[int]:
    return [u for u in range(manifest.spec.num_units) if unit_name(0, u) not in commits]


def _has_text(commits: Mapping[str, Commit], charset: Charset) -> bool:
    specs = [commit.text for commit in commits.values() if commit.text]
    for spec in specs:
        if spec.charset_name == charset.name and spec.characters != charset.characters:
            raise CacheMismatchError(
                f"the cache's charset {charset.name} has {len(spec.characters)} characters, this "
                f"one {len(charset.characters)}, and they differ; rename the charset file"
            )
    return any(spec.characters == charset.characters for spec in specs)


def _load_teacher(config: BuildConfig, manifest: Manifest | None) -> Teacher:
    by_device = "fp16" if config.device.type == "cuda" else "fp32"
    begun_with = manifest.spec.teacher.precision if manifest else by_device
    return load_teacher(
        config.teacher,
        image_taps=config.image_taps,
        text_taps=config.text_taps,
        precision=config.precision or begun_with,
        device=config.device,
        activation=config.activation,
    )


def _spec(config: BuildConfig, teacher: TeacherSpec, scan: Scan) -> CacheSpec:
    return CacheSpec(
        teacher=teacher,
        view=ViewSpec(),
        labels=config.labels,
        codec=config.codec,
        seed=config.seed,
        sources=scan.sources,
        num_rows=len(scan.row_source),
        unit_rows=config.unit_rows,
        chunk_rows=config.chunk_rows,
    )


def _require_same_request(
    config: BuildConfig, sources: Mapping[str, Path], manifest: Manifest
) -> None:
    """Compare what can be compared without loading the teacher or scanning the sources."""
    have = manifest.spec
    model, _, weights = config.teacher.partition("/")
    if have.teacher.weights == f"file:{Path(weights).name}":
        weights = have.teacher.weights
    digests = {s.name: s.digest for s in have.sources}
    want = replace(
        have,
        teacher=replace(
            have.teacher,
            model=model,
            weights=weights,
            activation=config.activation or have.teacher.activation,
            precision=config.precision or have.teacher.precision,
            image_taps=config.image_taps,
            text_taps=config.text_taps,
        ),
        labels=config.labels,
        codec=config.codec,
        seed=config.seed,
        sources=tuple(
            SourceSpec(name=name, num_samples=len(WordLmdb(path)), digest=digests.get(name, "new"))
            for name, path in sources.items()
        ),
        unit_rows=config.unit_rows,
        chunk_rows=config.chunk_rows,
    )
    _require_equal_spec(have, want, config.out)


def _require_equal_spec(have: CacheSpec, want: CacheSpec, out: Path) -> None:
    require_equal(
        have,
        want,
        f"{out} holds another cache",
        "Pass what it was begun with, or build into another folder with --out",
    )


def _require_free(out: Path) -> None:
    """Refuse a folder that holds other things: a cache must be deletable as a whole."""
    strange = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    # An index whose manifest was not reached is ours: the process was killed while planning.
    strange = [name for name in strange if name not in {".tmp", "zarr.json", *_GROUPS}]
    if strange:
        raise UsageError(
            f"{out} is not a cache and holds {', '.join(strange[:3])}; pass a new folder as --out"
        )
    out.mkdir(parents=True, exist_ok=True)


def _write_index(storage: LocalStorage, spec: CacheSpec, scan: Scan) -> Manifest:
    """Permute the rows and publish everything that says what they are; the manifest comes last."""
    storage.sweep()
    names = [source.name for source in spec.sources]
    hashes = sample_hashes(spec.seed, names, scan.row_source, scan.row_lmdb_index)
    order = np.argsort(hashes, kind="stable")
    strings = encode_strings(scan.labels)
    manifest = Manifest(
        spec=spec,
        num_labels=len(scan.labels),
        num_label_bytes=len(strings["utf8"]),
        num_rejected=len(scan.rejected_source),
        built_with={
            package: importlib.metadata.version(package)
            for package in ("clipocr", "torch", "open_clip_torch", "pillow", "numpy", "zarr")
        },
        files={},
    )
    rows: dict[str, Array] = {
        "source": scan.row_source,
        "lmdb_index": scan.row_lmdb_index,
        "label": scan.row_label,
    }
    rejected: dict[str, Array] = {
        "source": scan.rejected_source,
        "lmdb_index": scan.rejected_lmdb_index,
        "reason": scan.rejected_reason,
    }
    files: dict[str, FileRecord] = {}
    for key, layout in spec.row_layouts().items():
        files |= write_array(storage, layout, rows[key][order])
    for key, layout in manifest.label_layouts().items():
        files |= write_array(storage, layout, strings[key])
    for key, layout in manifest.rejected_layouts().items():
        files |= write_array(storage, layout, rejected[key])
    for layout in spec.image_layouts(0).values():
        files |= write_metadata(storage, layout)
    for folder in _GROUPS:
        name = f"{folder}/zarr.json".lstrip("/")
        files[name] = storage.write(name, GROUP_METADATA)
    manifest = replace(manifest, files=files)
    storage.write(MANIFEST_NAME, encode_record(manifest.to_json()))
    return manifest


def _seal_if_complete(storage: LocalStorage, manifest: Manifest, charset: Charset) -> None:
    """Publish all commit records in one, once nothing is missing; readers then open one file."""
    # Read anew: another process may be building other units of this cache.
    commits = read_commits(storage, manifest)
    is_complete = not _missing_units(manifest, commits) and _has_text(commits, charset)
    if is_complete and not storage.exists(SEAL_NAME):
        records = {name: commit.to_json() for name, commit in sorted(commits.items())}
        storage.write(SEAL_NAME, encode_record({"commits": records}))
