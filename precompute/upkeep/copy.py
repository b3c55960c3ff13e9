"""`clipocr cache copy`: a cache, or a smaller one cut from it, from anywhere into a folder.

    index ──► manifest ──► weights, each text table and unit: files, then commit record ──► seal

The order is the builder's, so a copy that is killed is a cache already, of the units it has; the
same command goes on where it stopped, and what was left out can be copied or built later. Every
file is compared with its record before it appears.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ...shared.ahead import map_ahead
from ...shared.atomic import new_folder
from ...shared.cache import names
from ...shared.cache.json_record import encode_record
from ...shared.cache.memory import Bytes
from ...shared.cache.names import MANIFEST_NAME
from ...shared.cache.reader import FeatureCache, pool_of, publish_seal, read_manifest
from ...shared.cache.records import Manifest, Record, UnitRecord
from ...shared.cache.storage import FileRecord, LocalStorage, ReadStorage, hash_file
from ...shared.errors import CacheCorruptError, CacheMismatchError, CacheUnavailableError
from ...shared.progress import progress_bar
from ...shared.terminal import byte_size
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
    source, target = FeatureCache.open(config.source), LocalStorage(config.out)
    manifest, records = source.manifest, _records(source, config)
    begun = read_manifest(target)
    if begun is None:
        names.require_free(config.out)
    elif begun.cache_id != manifest.cache_id:
        raise CacheMismatchError(
            f"{config.out} holds another cache ({begun.cache_id}, this would be "
            f"{manifest.cache_id}); copy into another folder"
        )
    with new_folder(config.out):
        target.sweep()
        copied, kept = _copy_parts(source.storage, target, manifest, records, begun is None)
    if source.is_sealed:
        publish_seal(target, manifest)
    # One that has no unit yet is begun again sooner than copied.
    if source.pool is not None and source.pool.units():
        pool = copy_cache(
            CopyConfig(source=pool_of(config.source), out=config.out / names.POOL_FOLDER)
        )
        copied, kept = copied + pool.num_bytes_copied, kept + pool.num_bytes_kept
    return CopySummary(
        cache=FeatureCache.open(config.out), num_bytes_copied=copied, num_bytes_kept=kept
    )


def _copy_parts(
    source: ReadStorage,
    target: LocalStorage,
    manifest: Manifest,
    records: Sequence[Record],
    lacks_manifest: bool,
) -> tuple[int, int]:
    """Copy the files of the index and of all records; return the bytes copied, and those kept."""
    parts: list[Manifest | Record] = [manifest, *records]
    num_bytes = sum(file.num_bytes for part in parts for file in part.files.values())
    copied, kept, done = 0, 0, set[str]()
    bar = progress_bar(total=num_bytes, desc="copy", unit="B", unit_scale=True)
    with bar as progress, ThreadPoolExecutor(_READ_THREADS) as executor:
        for part in parts:
            for name, file in part.files.items():
                is_done = name in done  # The units of a view share the metadata of their arrays.
                if is_done or _is_there(target, name, file):
                    kept += 0 if is_done else file.num_bytes
                    progress.update(file.num_bytes)
                else:
                    _copy_file(source, target, name, file, executor, progress)
                    copied += file.num_bytes
                done.add(name)
            if not isinstance(part, Manifest):
                target.ensure(names.record_file(part.name), encode_record(part))
            elif lacks_manifest:
                target.write(MANIFEST_NAME, encode_record(part.to_json()))
    return copied, kept


def _records(source: FeatureCache, config: CopyConfig) -> list[Record]:
    """Return the records of the copy: weights and text tables, then units, view by view."""
    units, held = source.first_rows(config.fraction), source.num_views
    if config.views is not None and config.views > held:
        raise CacheMismatchError(
            f"{source.storage} has {held} views, not {config.views}; pass --views {held}"
        )
    return [
        record
        for record in source.committed
        if not isinstance(record, UnitRecord)
        or (record.unit_idx in units and record.view_idx < (config.views or held))
    ]


def _is_there(target: LocalStorage, name: str, file: FileRecord) -> bool:
    is_same_size = target.size(name) == file.num_bytes
    return is_same_size and hash_file(target.root / name) == file.sha256


def _copy_file(
    source: ReadStorage,
    target: LocalStorage,
    name: str,
    file: FileRecord,
    executor: Executor,
    progress: tqdm[Any],
) -> None:
    """Publish a file; refuse it if it is not what its record says."""

    def read(start: int) -> Bytes:
        block = np.empty(min(_BLOCK_BYTES, file.num_bytes - start), np.uint8)
        source.read_into(block, name, start)
        return block

    pending = target.create(name)
    try:
        starts = range(0, file.num_bytes, _BLOCK_BYTES)
        with contextlib.suppress(CacheCorruptError):  # Too short, as its size says below.
            for block in map_ahead(executor, read, starts, _READ_THREADS):
                pending.write(block.data)
                progress.update(len(block))
        if (pending.num_bytes, pending.sha256) != (file.num_bytes, file.sha256):
            raise CacheCorruptError(
                f"{source}/{name} is not what was committed, and was not copied; find out what "
                f"else is damaged with: clipocr cache verify {source}"
            )
        pending.publish()
    except CacheUnavailableError as e:
        raise CacheUnavailableError(
            f"{e}. That file has {byte_size(file.num_bytes)}; brought by hand to {target}/{name}, "
            "it is checked and taken by the same command"
        ) from e
    finally:
        pending.discard()
