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
from typing import Any

import numpy as np
from tqdm import tqdm

from ...shared.ahead import map_ahead
from ...shared.cache import names
from ...shared.cache.json_record import encode_record
from ...shared.cache.memory import Bytes
from ...shared.cache.names import MANIFEST_NAME
from ...shared.cache.reader import FeatureCache, publish_seal, read_committed, read_manifest
from ...shared.cache.records import Manifest, Record, TextRecord
from ...shared.cache.storage import FileRecord, LocalStorage, ReadStorage, hash_file
from ...shared.errors import CacheCorruptError, CacheMismatchError, UsageError
from .config import CopyConfig

_BLOCK_BYTES = 1 << 23
_READ_THREADS = 4
"""Blocks of a file on their way at once: one stream rarely fills a line to an object store."""


@dataclass(frozen=True, kw_only=True)
class CopySummary:
    """What a copy did."""

    cache: FeatureCache
    num_bytes_copied: int
    num_bytes_kept: int
    """Of files that were there already, and right."""


def copy_cache(config: CopyConfig) -> CopySummary:
    """Copy a cache or a part of it, or finish an interrupted copy."""
    source = FeatureCache.open(config.source)
    target = LocalStorage(config.out)
    manifest = _manifest(source, config)
    records = _records(source, config, manifest)
    begun = read_manifest(target)
    if begun is None:
        names.require_free(config.out)
    elif begun.cache_id != manifest.cache_id:
        raise CacheMismatchError(
            f"{config.out} holds another cache ({begun.cache_id}, this would be "
            f"{manifest.cache_id}); copy into another folder"
        )
    config.out.mkdir(parents=True, exist_ok=True)
    target.sweep()
    num_bytes = sum(f.num_bytes for held in (manifest, *records) for f in held.files.values())
    bar = tqdm(total=num_bytes, desc="copy", unit="B", unit_scale=True)
    with bar as progress, ThreadPoolExecutor(_READ_THREADS) as executor:
        copier = _Copier(source.storage, target, executor, progress)
        copier.copy(manifest.files)
        if begun is None:
            target.write(MANIFEST_NAME, encode_record(manifest.to_json()))
        for record in records:
            copier.copy(record.files)
            target.ensure(names.record_file(record.name), encode_record(record))
    # Whatever is there: an earlier copy may have brought more.
    held = (
        publish_seal(target, manifest)
        if source.is_sealed
        else read_committed(target, manifest, through_seal=False)
    )
    return CopySummary(
        cache=FeatureCache(target, manifest, held),
        num_bytes_copied=copier.num_bytes_copied,
        num_bytes_kept=copier.num_bytes_kept,
    )


def _manifest(source: FeatureCache, config: CopyConfig) -> Manifest:
    """Return the manifest of the copy: the source's own unless taps are left out."""
    held, wanted = source.spec.image_taps, config.image_taps
    if wanted is None:
        return source.manifest
    missing = [tap for tap in wanted if tap not in held]
    if missing:
        raise CacheMismatchError(
            f"{source.storage} holds image taps {held}, not {', '.join(map(str, missing))}; pass "
            f"--image-taps with some of {','.join(map(str, held))}"
        )
    arrays, manifest = {names.block_name(tap) for tap in wanted}, source.manifest
    images = tuple(image for image in manifest.spec.images if image.name in arrays)
    made = replace(manifest, spec=replace(manifest.spec, images=images))
    # Of the groups of codecs' tables only those that still lead to one.
    layouts = made.index_layouts()
    kept = {
        *names.GROUPS,
        *(folder for a in layouts for folder in (a.name, *names.parents(a.name))),
    }
    files = {name: file for name, file in manifest.files.items() if names.array_of(name) in kept}
    return replace(made, files=files)


def _records(source: FeatureCache, config: CopyConfig, manifest: Manifest) -> list[Record]:
    """Return the records of the copy: text tables, then units, view by view."""
    units, held = _whole_units(source, config.fraction), source.num_views
    if config.views is not None and config.views > held:
        raise CacheMismatchError(
            f"{source.storage} has {held} views, not {config.views}; pass --views {held}"
        )
    chosen = {(v, u) for v in range(config.views or held) for u in units}
    return [
        _cut(record, manifest)
        for record in source.committed
        if isinstance(record, TextRecord) or (record.view_idx, record.unit_idx) in chosen
    ]


def _whole_units(source: FeatureCache, fraction: float) -> list[int]:
    """Return the first units whose share of the rows is nearest to `fraction`.

    Raises:
        UsageError: even that is a quarter more or less than asked, because only whole units can be
            copied.
    """
    units = list(source.first_rows(1))
    sizes = np.cumsum([source.spec.unit_size(unit_idx) for unit_idx in units])
    shares = sizes / sizes[-1]
    nearest = int(np.abs(shares - fraction).argmin())
    if abs(shares[nearest] - fraction) > fraction / 4:
        raise UsageError(
            f"--fraction {fraction:g} cannot be copied: only whole units can, and the nearest "
            f"share is {shares[nearest]:.3g} ({nearest + 1} of {len(units)} units of "
            f"{source.spec.unit_rows:,} rows). Pass that, or take rows by: clipocr train "
            f"--fraction {fraction:g}"
        )
    return units[: nearest + 1]


def _cut(record: Record, manifest: Manifest) -> Record:
    """Return a record as the cache of `manifest` has it."""
    if isinstance(record, TextRecord):
        return replace(record, cache_id=manifest.cache_id)
    layouts = manifest.spec.image_layouts(record.view_idx)
    kept = {names.view_group(record.view_idx), *(layout.name for layout in layouts.values())}
    return replace(
        record,
        cache_id=manifest.cache_id,
        files={name: file for name, file in record.files.items() if names.array_of(name) in kept},
        fidelity={array: value for array, value in record.fidelity.items() if array in layouts},
    )


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
        """Publish what is missing or wrong of `files`; refuse what is not what its record says."""
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
        is_same_size = self._target.size(name) == record.num_bytes
        return is_same_size and hash_file(self._target.root / name) == record.sha256

    def _bring(self, name: str, record: FileRecord) -> None:
        def read(start: int) -> Bytes:
            block = np.empty(min(_BLOCK_BYTES, record.num_bytes - start), np.uint8)
            self._source.read_into(block, name, start)
            return block

        pending = self._target.create(name)
        try:
            starts = range(0, record.num_bytes, _BLOCK_BYTES)
            with contextlib.suppress(CacheCorruptError):  # Too short, as its size says below.
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
