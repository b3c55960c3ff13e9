"""The index of a cache: what its rows are. Made once, from a scan; made again if it was damaged.

    scan ──► rows in their lasting order, labels, rejects ──► manifest

The index is a function of the sources and of the spec, so a lost one can be made again, to the same
bytes. Nothing is taken on trust: it is made beside the cache first, and takes its place only if it
is the one that the manifest, or the commit records, are of.

Shapes: N rows.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..shared.arrays import GROUP_METADATA, encode_strings, write_array, write_metadata
from ..shared.errors import CacheCorruptError, CacheMismatchError
from ..shared.records import decode_record, encode_record
from ..shared.schema import COMMITS_FOLDER, MANIFEST_NAME, CacheSpec, Manifest
from ..shared.storage import FileRecord, LocalStorage, ReadStorage, scratch_folder
from .calibrate import TableMaker, publish_tables
from .scan import Scan, sample_hashes

GROUPS = ("", "rows", "labels", "rejected", "image", "text")
"""The Zarr groups of every cache."""
CODEC_GROUPS = ("codec",)
"""Further ones, if the codec works by tables."""


def write_index(
    storage: LocalStorage,
    spec: CacheSpec,
    scan: Scan,
    make_tables: TableMaker,
    tables_at: LocalStorage | None = None,
) -> Manifest:
    """Permute the rows and publish everything that says what they are; the manifest comes last.

    Args:
        storage: Where to.
        spec: Of the cache.
        scan: Of its sources.
        make_tables: Makes those tables of the codec that are not there yet.
        tables_at: Where tables may be, and are published first; None: `storage`.
    """
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
    rows, rejected = scan.rows, scan.rejected
    files: dict[str, FileRecord] = {}
    for key, layout in spec.row_layouts().items():
        files |= write_array(storage, layout, rows[key][order])
    for key, layout in manifest.label_layouts().items():
        files |= write_array(storage, layout, strings[key])
    for key, layout in manifest.rejected_layouts().items():
        files |= write_array(storage, layout, rejected[key])
    layouts = spec.codec_layouts(files)
    groups = (*GROUPS, *CODEC_GROUPS, *{str(Path(a.name).parent) for a in layouts.values()})
    tables_at = tables_at or storage
    records = publish_tables(tables_at, layouts, make_tables)
    for layout in layouts.values():
        files |= write_metadata(storage, layout)
        name = layout.shard_name(0)
        if tables_at is not storage:
            storage.write(name, tables_at.read(name))
        files[name] = records[name]
    for folder in groups if layouts else GROUPS:
        name = f"{folder}/zarr.json".lstrip("/")
        files[name] = storage.write(name, GROUP_METADATA)
    manifest = replace(manifest, files=files)
    storage.write(MANIFEST_NAME, encode_record(manifest.to_json()))
    return manifest


def is_index_whole(storage: ReadStorage, manifest: Manifest) -> bool:
    """Return whether every file of the index is there; a repair removes those that are damaged."""
    return all(storage.size(name) == file.num_bytes for name, file in manifest.files.items())


def restore_index(
    storage: LocalStorage, manifest: Manifest, scan: Scan, make_tables: TableMaker
) -> None:
    """Put back the files of the index that are missing.

    Raises:
        CacheMismatchError: the index that comes out of `scan` is another one.
    """
    with scratch_folder(storage) as scratch:
        made = write_index(scratch, manifest.spec, scan, make_tables, storage)
        if made.cache_id != manifest.cache_id:
            raise CacheMismatchError(
                f"{storage}: its index has to be made again, and comes out as another "
                f"({_differing(manifest, made)}); it was built with {_versions(manifest)}, this is "
                f"{_versions(made)}. Install those versions, or put the files there from a copy"
            )
        for name in manifest.files:
            storage.ensure(name, scratch.read(name))


def restore_manifest(
    storage: LocalStorage, spec: CacheSpec, scan: Scan, make_tables: TableMaker
) -> Manifest:
    """Make manifest and index again for the units that are there.

    Raises:
        CacheMismatchError: the units there are of another cache than `spec` and `scan` make.
    """
    with scratch_folder(storage) as scratch:
        made = write_index(scratch, spec, scan, make_tables, storage)
        owners = committed_cache_ids(storage)
        if made.cache_id not in owners:
            raise CacheMismatchError(
                f"{storage} has lost its manifest and holds units of cache {min(owners)}; with "
                f"these options and sources this would be cache {made.cache_id}. Run the very "
                "command it was begun with, or build into another folder with --out"
            )
        for name in made.files:
            storage.ensure(name, scratch.read(name))
        storage.ensure(MANIFEST_NAME, scratch.read(MANIFEST_NAME))
    return made


def committed_cache_ids(storage: ReadStorage) -> set[str]:
    """Return the caches that the readable commit records below `storage` belong to."""
    owners = set()
    for name in storage.names(COMMITS_FOLDER):
        try:
            owners.add(str(decode_record(storage.read(name), name)["cache_id"]))
        except (CacheCorruptError, KeyError):
            continue
    return owners


def _differing(have: Manifest, made: Manifest) -> str:
    names = sorted(set(have.files) | set(made.files))
    return ", ".join(n for n in names if have.files.get(n) != made.files.get(n))


def _versions(manifest: Manifest) -> str:
    built_with: Mapping[str, str] = manifest.built_with
    return ", ".join(f"{package} {built_with.get(package)}" for package in ("clipocr", "zarr"))
