"""The index of a cache: what its rows are. Made once, from a scan; made again if it was damaged.

    scan ──► rows in their lasting order, labels, rejects ──► codecs, their tables ──► manifest

The index is a function of the sources and of the spec, so a lost one can be made again, to the same
bytes. Nothing is taken on trust: it is made beside the cache first, and takes its place only if it
is the one that the manifest, or the commit records, are of.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

from ...shared.cache.codecs.choice import asked_fidelity
from ...shared.cache.codecs.codecs import join_tap_codecs, klt_record_bytes
from ...shared.cache.records import decode_record, encode_record
from ...shared.cache.schema import COMMITS_FOLDER, MANIFEST_NAME, CacheSpec, Manifest
from ...shared.cache.shards import (
    GROUP_METADATA,
    Array,
    ArrayLayout,
    encode_strings,
    write_array,
    write_metadata,
)
from ...shared.cache.storage import LocalStorage, ReadStorage, scratch_folder
from ...shared.distribution import versions_with
from ...shared.errors import CacheCorruptError, CacheMismatchError
from .calibrate import Calibration
from .publish import encode_choice, publish_choice, publish_table
from .scan import Scan

GROUPS = ("", "rows", "labels", "rejected", "image", "text")
"""The Zarr groups of every cache."""
CODEC_FOLDERS = ("codec", "choice")
"""What a cache may have besides: tables of its codecs, and what they were chosen by."""


def write_index(
    storage: LocalStorage,
    spec: CacheSpec,
    scan: Scan,
    calibration: Calibration,
    shared: LocalStorage | None = None,
) -> Manifest:
    """Permute the rows and publish everything that says what they are; the manifest comes last.

    Args:
        storage: Where to.
        spec: Of the cache; with codec ``auto:F`` the codec is chosen here.
        scan: Of its sources.
        calibration: Makes what is not there yet of tables and choices.
        shared: Where tables and choices may be, and are published first; None: `storage`.
    """
    shared = shared or storage
    manifest = draft_manifest(spec, scan)
    files = {name: storage.ensure(name, GROUP_METADATA) for name in map(_group, GROUPS)}
    for layout, values in index_arrays(manifest, scan):
        files |= write_array(storage, layout, values)
    manifest = _choose(replace(manifest, files=files), calibration, shared)
    for key, name in manifest.choice_files().items():
        files[name] = storage.ensure(name, encode_choice(manifest.choices[key]))
    codecs = {f"block{tap}": codec for tap, codec in manifest.spec.tap_codecs.items()}
    for key, layout in manifest.codec_layouts().items():
        tap, name = int(key.removeprefix("block")), layout.shard_name(0)
        make = partial(calibration.table, tap, klt_record_bytes(codecs[key]))
        files[name] = publish_table(shared, layout, make)
        if shared is not storage:
            storage.write(name, shared.read(name))
        files |= write_metadata(storage, layout)
        for folder in PurePosixPath(layout.name).parents[:-1]:
            group = _group(str(folder))
            files[group] = storage.ensure(group, GROUP_METADATA)
    manifest = replace(manifest, files=files)
    storage.write(MANIFEST_NAME, encode_record(manifest.to_json()))
    return manifest


def draft_manifest(spec: CacheSpec, scan: Scan) -> Manifest:
    """Return the manifest of a cache without its files."""
    return Manifest(
        spec=spec,
        num_labels=len(scan.labels),
        num_label_bytes=sum(len(label.encode()) for label in scan.labels),
        num_rejected=len(scan.rejected_source),
        built_with=versions_with("torch", "open_clip_torch", "pillow", "numpy", "zarr"),
        files={},
    )


def index_arrays(manifest: Manifest, scan: Scan) -> Iterator[tuple[ArrayLayout, Array]]:
    """Yield every array that says what rows are, with its values."""
    order = scan.order(manifest.spec.seed)
    strings = encode_strings(scan.labels)
    rows, rejected = scan.rows, scan.rejected
    yield from ((layout, rows[key][order]) for key, layout in manifest.spec.row_layouts().items())
    yield from ((layout, strings[key]) for key, layout in manifest.label_layouts().items())
    yield from ((layout, rejected[key]) for key, layout in manifest.rejected_layouts().items())


def _choose(manifest: Manifest, calibration: Calibration, shared: LocalStorage) -> Manifest:
    """Return the manifest with the codecs that ``auto:F`` takes; as it is if they are named."""
    spec = manifest.spec
    fidelity = asked_fidelity(spec.codec)
    if fidelity is None:
        return manifest
    names = spec.choice_files(fidelity, manifest.files)
    choices = {
        f"block{tap}": publish_choice(
            shared, names[f"block{tap}"], partial(calibration.choose, tap, fidelity)
        )
        for tap in spec.teacher.image_taps
    }
    codec = join_tap_codecs(choice.codec for choice in choices.values())
    return replace(manifest, spec=replace(spec, codec=codec), choices=choices)


def _group(folder: str) -> str:
    return f"{folder}/zarr.json".lstrip("/")


def is_index_whole(storage: ReadStorage, manifest: Manifest) -> bool:
    """Return whether every file of the index is there; a repair removes those that are damaged."""
    return all(storage.size(name) == file.num_bytes for name, file in manifest.files.items())


def restore_index(
    storage: LocalStorage, manifest: Manifest, scan: Scan, calibration: Calibration
) -> None:
    """Put back the files of the index that are missing.

    Raises:
        CacheMismatchError: the index that comes out of `scan` is another one.
    """
    # The manifest repeats them, so there is nothing to choose again.
    for key, name in manifest.choice_files().items():
        storage.ensure(name, encode_choice(manifest.choices[key]))
    with scratch_folder(storage) as scratch:
        made = write_index(scratch, manifest.request, scan, calibration, storage)
        if made.cache_id != manifest.cache_id:
            raise CacheMismatchError(
                f"{storage}: its index has to be made again, and comes out as another "
                f"({_differing(manifest, made)}); it was built with {_versions(manifest)}, this is "
                f"{_versions(made)}. Install those versions, or put the files there from a copy"
            )
        for name in manifest.files:
            storage.ensure(name, scratch.read(name))


def restore_manifest(
    storage: LocalStorage, spec: CacheSpec, scan: Scan, calibration: Calibration
) -> Manifest:
    """Make manifest and index again for the units that are there.

    Raises:
        CacheMismatchError: the units there are of another cache than `spec` and `scan` make.
    """
    with scratch_folder(storage) as scratch:
        made = write_index(scratch, spec, scan, calibration, storage)
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
