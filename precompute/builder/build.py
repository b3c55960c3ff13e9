"""`clipocr cache build`: from LMDBs to a sealed feature cache.

    scan ──► index ──► views ──► image taps ──► codec ──► unit ──► seal
                └────► unique labels ──► characters ──► text taps ──► text table ──┘

Each step ends in a published record and is skipped when its record is there, so running the same
command again finishes what is missing. Shapes: N rows, B rows of a chunk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...shared.cache.codecs.choice import asked_fidelity, auto_codec
from ...shared.cache.codecs.codecs import join_tap_codecs, parse_tap_codecs
from ...shared.cache.reader import (
    FeatureCache,
    publish_seal,
    read_commits,
    read_manifest,
    unit_name,
)
from ...shared.cache.records import differing_fields, require_equal
from ...shared.cache.schema import (
    AUGMENTATIONS,
    COMMITS_FOLDER,
    MANIFEST_NAME,
    SEAL_NAME,
    CacheSpec,
    Commit,
    Manifest,
    SourceSpec,
    TeacherSpec,
    ViewSpec,
)
from ...shared.cache.storage import LocalStorage
from ...shared.charset import Charset, LabelRules
from ...shared.data.word_lmdb import WordLmdb, find_named_lmdbs
from ...shared.errors import UsageError
from ..teacher.clip import Teacher, load_teacher
from .calibrate import Calibration
from .index import (
    CODEC_FOLDERS,
    GROUPS,
    committed_cache_ids,
    is_index_whole,
    restore_index,
    restore_manifest,
    write_index,
)
from .scan import Scan, scan_sources
from .text import build_text_table, find_text
from .units import UnitBuilder


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
    device: torch.device = torch.device("cpu")
    precision: str | None = None
    """None: what the cache was begun with, else fp16 on CUDA and fp32 on CPU."""
    image_taps: tuple[int, ...] = (3, 6, 9)
    text_taps: tuple[int, ...] = (3, 6, 9)
    charset: Charset
    labels: LabelRules = LabelRules()
    codec: str = "fp16"
    """Of the image taps: one for all, or one for each, by commas; ``auto:F`` chooses them."""
    augment: str = "clean"
    """``clean`` or ``randaugment``."""
    num_views: int = 1
    """K: epoch e of a training sees view e mod K. More can be added to a finished cache."""
    seed: int = 0
    unit_rows: int = 16384
    chunk_rows: int = 256
    num_workers: int = 0
    """Processes that decode images; 0: a thread of this process."""
    rank: int = 0
    """Which of `world_size` processes this is: it builds every `world_size`-th unit."""
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.chunk_rows < 1 or self.unit_rows < 1 or self.unit_rows % self.chunk_rows:
            raise UsageError(
                f"unit rows {self.unit_rows} is not a multiple of chunk rows {self.chunk_rows}"
            )
        _full_name(self.codec, len(self.image_taps))
        if self.augment not in AUGMENTATIONS:
            raise UsageError(
                f"augment is {self.augment!r}, expected one of {', '.join(AUGMENTATIONS)}"
            )
        if self.num_views < 1:
            raise UsageError(f"views is {self.num_views}, expected 1 or more")
        if self.num_views > 1 and self.augment == "clean":
            raise UsageError(
                f"{self.num_views} clean views would all be the same; pass --augment randaugment, "
                "or --views 1"
            )
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank is {self.rank} of {self.world_size} processes")


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build did."""

    cache: FeatureCache
    num_rows_built: int
    """0 when nothing was missing."""
    num_bad_rows: int
    """Bad images among all rows of the cache."""
    is_complete: bool
    """Whether every unit of every requested view is there; other processes may still build some."""
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
        commits = read_commits(storage, manifest, through_seal=False)
        is_whole = is_index_whole(storage, manifest)
        is_complete = not _missing_units(config, manifest, commits)
        if not (is_whole and is_complete and find_text(commits, config.charset)):
            # Something will be written, so what it is made from must be exactly what it was.
            teacher = _load_teacher(config, manifest)
            scan = scan_sources(sources, config.labels)
            _require_equal_spec(manifest.request, _spec(config, teacher.spec, scan), config.out)
            storage.sweep()
            if not is_whole:
                calibration = Calibration(manifest.spec, scan, teacher)
                restore_index(storage, manifest, scan, calibration)
        else:
            teacher = None
    else:
        _require_free(config.out)
        teacher = _load_teacher(config, None)
        teacher.require_room(config.labels.max_label_length)
        scan = scan_sources(sources, config.labels)
        storage.sweep()
        make_index = restore_manifest if committed_cache_ids(storage) else write_index
        spec = _spec(config, teacher.spec, scan)
        manifest = make_index(storage, spec, scan, Calibration(spec, scan, teacher))
        commits = read_commits(storage, manifest, through_seal=False)
    started, num_rows_built = time.perf_counter(), 0
    if teacher is not None:
        cache = FeatureCache(storage, manifest, commits)
        if config.rank == 0 and not find_text(commits, config.charset):
            labels = cache.labels()
            commit = build_text_table(storage, manifest, labels, config.charset, teacher)
            cache.publish(commit)
        started = time.perf_counter()
        builder = UnitBuilder(cache, teacher, tuple(sources.values()), config.num_workers)
        # Shares are cut from all units, not from the missing ones: those change under one's eyes.
        share = [
            (view_idx, unit_idx)
            for view_idx, unit_idx in _missing_units(config, manifest, commits)
            if (view_idx * manifest.spec.num_units + unit_idx) % config.world_size == config.rank
        ]
        num_rows_built = builder.build(share)
    commits = _seal_if_complete(config, storage, manifest)
    first_view = [c for name, c in commits.items() if name.startswith("view0/")]
    return BuildSummary(
        cache=FeatureCache(storage, manifest, commits),
        num_rows_built=num_rows_built,
        num_bad_rows=sum(len(c.bad_rows) for c in first_view),
        is_complete=not _missing_units(config, manifest, commits),
        image_seconds=time.perf_counter() - started,
    )


def _missing_units(
    config: BuildConfig, manifest: Manifest, commits: Mapping[str, Commit]
) -> list[tuple[int, int]]:
    """Return the (view, unit) pairs that are not committed, view by view."""
    return [
        (view_idx, unit_idx)
        for view_idx in range(config.num_views)
        for unit_idx in range(manifest.spec.num_units)
        if unit_name(view_idx, unit_idx) not in commits
    ]


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
    spec = CacheSpec(
        teacher=teacher,
        view=ViewSpec(augment=config.augment),
        labels=config.labels,
        codec=_full_name(config.codec, len(teacher.image_taps)),
        seed=config.seed,
        sources=scan.sources,
        num_rows=len(scan.row_source),
        unit_rows=config.unit_rows,
        chunk_rows=config.chunk_rows,
    )
    if asked_fidelity(spec.codec) is None:
        spec.image_layouts(0)  # Refuses, before anything is computed, what cannot be stored.
    return spec


def _full_name(codec: str, num_taps: int) -> str:
    """Return the one name of what ``--codec`` says, as it stands in a spec."""
    fidelity = asked_fidelity(codec)
    if fidelity is not None:
        return auto_codec(fidelity)
    return join_tap_codecs(parse_tap_codecs(codec, num_taps))


def _require_same_request(
    config: BuildConfig, sources: Mapping[str, Path], manifest: Manifest
) -> None:
    """Compare what can be compared without loading the teacher or scanning the sources."""
    have = manifest.request
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
        view=ViewSpec(augment=config.augment),
        labels=config.labels,
        codec=_full_name(config.codec, len(config.image_taps)),
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
    fields = differing_fields(have, want)
    options = " ".join(dict.fromkeys(_option(have, field) for field in fields))
    require_equal(
        have,
        want,
        f"{out} holds another cache",
        f"Go on with that one by: clipocr cache build --out {out} {options} ...; or build this "
        "one into another folder with --out",
    )


def _option(have: CacheSpec, field: str) -> str:
    """Return the option of the build command that sets a field to what the cache has."""
    teacher, labels = have.teacher, have.labels
    options = {
        "teacher.image_taps": f"--image-taps {','.join(map(str, teacher.image_taps))}",
        "teacher.text_taps": f"--text-taps {','.join(map(str, teacher.text_taps))}",
        "teacher.precision": f"--precision {teacher.precision}",
        "teacher.activation": f"--activation {teacher.activation}",
        "view.augment": f"--augment {have.view.augment}",
        "labels.max_label_length": f"--max-label-length {labels.max_label_length}",
        "labels.keep_unicode": "(without --keep-unicode)"
        if not labels.keep_unicode
        else "--keep-unicode",
        "codec": f"--codec {have.codec}".replace("auto:", "auto --fidelity "),
        "seed": f"--seed {have.seed}",
        "unit_rows": f"--unit-rows {have.unit_rows}",
        "chunk_rows": f"--chunk-rows {have.chunk_rows}",
    }
    if field in options:
        return options[field]
    if field.startswith("teacher."):
        # Of a weights file the cache knows the name, not the place.
        return f"--teacher {teacher.name.replace('/file:', '/PATH/')}"
    if field.startswith("sources") or field == "num_rows":
        return "--data ROOT (with the sources as they were)"
    return "(with the clipocr that began it)"


def _require_free(out: Path) -> None:
    """Refuse a folder that holds other things: a cache must be deletable as a whole."""
    strange = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    # What a cache has is ours: an index whose manifest was not reached, because the process was
    # killed while planning, or one that another process has finished since we looked.
    ours = {".tmp", "zarr.json", *GROUPS, *CODEC_FOLDERS, MANIFEST_NAME, COMMITS_FOLDER, SEAL_NAME}
    strange = [name for name in strange if name not in ours]
    if strange:
        raise UsageError(
            f"{out} is not a cache and holds {', '.join(strange[:3])}; pass a new folder as --out"
        )
    out.mkdir(parents=True, exist_ok=True)


def _seal_if_complete(
    config: BuildConfig, storage: LocalStorage, manifest: Manifest
) -> dict[str, Commit]:
    """Seal the cache once nothing is missing.

    Returns the records there are, whoever published them.
    """
    # Read anew: another process may be building other units of this cache.
    commits = read_commits(storage, manifest, through_seal=False)
    if not _missing_units(config, manifest, commits) and find_text(commits, config.charset):
        return publish_seal(storage, manifest)
    return commits
