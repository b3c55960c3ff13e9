"""`clipocr cache copy`: a cache, or a smaller one cut from it, from anywhere into a folder.

    index ──► manifest ──► each text table and unit: files, then commit record ──► seal

The order is the builder's, so a copy that is killed is a cache already, of the units it has; the
same command goes on where it stopped. Every file is compared with its record before it appears.

Views and units are cut from the end only: view 1 without view 0 would be called view 0 and then
not be what its name says. Taps may be any of those there are. Fewer taps are another spec, so such
a cache has an id of its own, as if it had been built with those taps; it can be built on, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from ...shared.ahead import map_ahead
from ...shared.cache.codecs.codecs import join_tap_codecs
from ...shared.cache.memory import Bytes
from ...shared.cache.reader import (
    FeatureCache,
    publish_seal,
    read_commits,
    read_manifest,
    unit_name,
)
from ...shared.cache.records import encode_record
from ...shared.cache.schema import MANIFEST_NAME, Commit, Manifest
from ...shared.cache.storage import FileRecord, LocalStorage, ReadStorage, hash_file
from ...shared.errors import CacheCorruptError, CacheMismatchError, CacheMissingError, UsageError

_BLOCK_BYTES = 1 << 23
_READ_THREADS = 4
"""Blocks of a file on their way at once: one stream rarely fills a line to an object store."""

_OURS = {".tmp", "zarr.json", "rows", "labels", "rejected", "codec", "choice", "image", "text"}
"""What a copy that was killed before its manifest may have left."""


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """What `clipocr cache copy` was asked for."""

    source: str | Path
    """Folder or address."""
    out: Path
    fraction: float = 1.0
    """Share of the committed units, from the first on; at least one."""
    num_views: int | None = None
    """How many views, from view 0 on. None: all."""
    image_taps: tuple[int, ...] | None = None
    """Image blocks to keep. None: all."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UsageError(f"fraction is {self.fraction}, expected more than 0 and at most 1")
        if self.num_views is not None and self.num_views < 1:
            raise UsageError(f"views is {self.num_views}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class CopySummary:
    """What a copy did."""

    cache: FeatureCache
    num_bytes_copied: int
    num_bytes_kept: int
    """Of files that were there already, and right."""


def copy_cache(config: CopyConfig) -> CopySummary:
    """Copy a cache or a part of it, or finish an interrupted copy.

    Raises:
        CacheMissingError: there is no cache, or one of its files is gone.
        CacheMismatchError: the cache has no such views or taps, or `out` holds another cache.
        CacheCorruptError: a file is not what was committed; it does not appear in `out`.
        CacheUnavailableError: the address does not answer.
    """
    source = FeatureCache.open(config.source)
    target = LocalStorage(config.out)
    manifest = _manifest(source, config)
    commits = _commits(source, config, manifest)
    begun = read_manifest(target)
    if begun is None:
        _require_free(config.out)
    elif begun.cache_id != manifest.cache_id:
        raise CacheMismatchError(
            f"{config.out} holds another cache ({begun.cache_id}, this would be "
            f"{manifest.cache_id}); copy into another folder"
        )
    config.out.mkdir(parents=True, exist_ok=True)
    target.sweep()
    num_bytes = sum(_num_bytes(files) for files in (manifest.files, *(c.files for c in commits)))
    bar = tqdm(total=num_bytes, desc="copy", unit="B", unit_scale=True)
    with bar as progress, ThreadPoolExecutor(_READ_THREADS) as executor:
        copier = _Copier(source.storage, target, executor, progress)
        copier.copy(manifest.files)
        if begun is None:
            target.write(MANIFEST_NAME, encode_record(manifest.to_json()))
        for commit in commits:
            copier.copy(commit.files)
            target.ensure(commit.record_name, encode_record(commit.to_json()))
    # Whatever is there: an earlier copy may have brought more.
    held = (
        publish_seal(target, manifest)
        if source.is_sealed
        else read_commits(target, manifest, through_seal=False)
    )
    return CopySummary(
        cache=FeatureCache(target, manifest, held),
        num_bytes_copied=copier.num_bytes_copied,
        num_bytes_kept=copier.num_bytes_kept,
    )


def _manifest(source: FeatureCache, config: CopyConfig) -> Manifest:
    """Return the manifest of the copy: the source's own unless taps are left out."""
    held, wanted = source.spec.teacher.image_taps, config.image_taps
    if wanted is None:
        return source.manifest
    missing = [tap for tap in wanted if tap not in held]
    if missing:
        raise CacheMismatchError(
            f"{source.storage} holds image taps {held}, not {', '.join(map(str, missing))}; pass "
            f"--taps with some of {','.join(map(str, held))}"
        )
    return _with_taps(source.manifest, tuple(tap for tap in held if tap in wanted))


def _with_taps(manifest: Manifest, taps: tuple[int, ...]) -> Manifest:
    """Return what a build with these of a cache's image taps alone would have made."""
    spec, codecs, keys = manifest.spec, manifest.spec.tap_codecs, {f"block{tap}" for tap in taps}
    made = replace(
        manifest,
        spec=replace(
            spec,
            teacher=replace(spec.teacher, image_taps=taps),
            codec=join_tap_codecs(codecs[tap] for tap in taps),
        ),
        choices={key: choice for key, choice in manifest.choices.items() if key in keys},
    )
    tables = [layout.name for layout in made.codec_layouts().values()]
    # Of the tables' groups only those that still lead to one.
    groups = {folder.as_posix() for name in tables for folder in PurePosixPath(name).parents}
    ours = {*(f"{group}/zarr.json" for group in groups), *made.choice_files().values()}
    files = {
        name: file
        for name, file in manifest.files.items()
        if not name.startswith(("codec/", "choice/"))
        or name in ours
        or name.startswith(tuple(f"{table}/" for table in tables))
    }
    return replace(made, files=files)


def _commits(source: FeatureCache, config: CopyConfig, manifest: Manifest) -> list[Commit]:
    """Return the commits of the copy: text tables, then units, view by view."""
    units = source.units()
    if not units:
        raise CacheMissingError(
            f"{source.storage} has no finished unit yet; finish its build before copying it"
        )
    held = source.num_views
    if config.num_views is not None and config.num_views > held:
        raise CacheMismatchError(
            f"{source.storage} has {held} views, not {config.num_views}; pass --views {held}"
        )
    # The same units that `clipocr train --fraction` takes.
    units = units[: max(1, round(config.fraction * len(units)))]
    names = [name for name, commit in sorted(source.commits.items()) if commit.text]
    names += [
        unit_name(view_idx, unit_idx)
        for view_idx in range(config.num_views or held)
        for unit_idx in units
    ]
    return [
        _cut(source.commits[name], source, manifest) for name in names if name in source.commits
    ]


def _cut(commit: Commit, source: FeatureCache, manifest: Manifest) -> Commit:
    """Return a commit as the cache of `manifest` has it."""
    kept = manifest.spec.teacher.image_taps
    arrays = {f"block{tap}" for tap in source.spec.teacher.image_taps if tap not in kept}

    def stays(name: str) -> bool:
        # image/view0/block3/c/0/0/0
        parts = name.split("/")
        return not (parts[0] == "image" and parts[2] in arrays)

    return replace(
        commit,
        cache_id=manifest.cache_id,
        files={name: file for name, file in commit.files.items() if stays(name)},
        fidelity={name: value for name, value in commit.fidelity.items() if name not in arrays},
    )


def _require_free(out: Path) -> None:
    """Refuse a folder that holds other things: a cache must be deletable as a whole."""
    strange = sorted(p.name for p in out.iterdir() if p.name not in _OURS) if out.is_dir() else []
    if strange:
        raise UsageError(f"{out} holds {', '.join(strange[:3])} and no cache; copy to a new folder")


def _num_bytes(files: Mapping[str, FileRecord]) -> int:
    return sum(file.num_bytes for file in files.values())


class _Copier:
    """Brings files over, each once."""

    def __init__(
        self, source: ReadStorage, target: LocalStorage, executor: Executor, progress: tqdm[Any]
    ) -> None:
        self._source, self._target = source, target
        self._executor, self._progress = executor, progress
        self._done: set[str] = set()
        self.num_bytes_copied = 0
        self.num_bytes_kept = 0

    def copy(self, files: Mapping[str, FileRecord]) -> None:
        """Publish what is missing or wrong of `files`.

        Raises:
            CacheCorruptError: a file of the source is not what its record says.
        """
        for name, record in files.items():
            # The units of a view share the metadata of their arrays.
            if name in self._done:
                self._progress.update(record.num_bytes)
            elif self._is_there(name, record):
                self.num_bytes_kept += record.num_bytes
                self._progress.update(record.num_bytes)
            else:
                self._bring(name, record)
                self.num_bytes_copied += record.num_bytes
            self._done.add(name)

    def _is_there(self, name: str, record: FileRecord) -> bool:
        return (
            self._target.size(name) == record.num_bytes
            and hash_file(self._target.root / name) == record.sha256
        )

    def _bring(self, name: str, record: FileRecord) -> None:
        def read(start: int) -> Bytes:
            block = np.empty(min(_BLOCK_BYTES, record.num_bytes - start), np.uint8)
            self._source.read_into(block, name, start)
            return block

        pending = self._target.create(name)
        try:
            starts = range(0, record.num_bytes, _BLOCK_BYTES)
            with contextlib.suppress(CacheCorruptError):  # Too short, as its digest says.
                for block in map_ahead(self._executor, read, starts, _READ_THREADS):
                    pending.write(block.data)
                    self._progress.update(len(block))
            if (pending.num_bytes, pending.sha256) != (record.num_bytes, record.sha256):
                raise CacheCorruptError(
                    f"{self._source}/{name} is not what was committed, and was not copied; find "
                    f"out what else is damaged with: clipocr cache verify {self._source}"
                )
            pending.publish()
        finally:
            pending.discard()
