"""The index of a cache: what its rows are. Made once, from a scan; made again if it was damaged.

    scan ──► rows in their lasting order, labels, rejects ──► tables of codecs ──► manifest

The index is a function of the sources and of the spec, so a lost one can be made again, to the same
bytes. It is made in a scratch folder first, and is copied into the cache only if its `cache_id` is
the one that the manifest, or the records of the units, carry.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from ...shared.cache import names
from ...shared.cache.json_record import encode_record
from ...shared.cache.names import MANIFEST_NAME
from ...shared.cache.reader import read_record
from ...shared.cache.records import Manifest
from ...shared.cache.shards import GROUP_METADATA, Array, ArrayLayout, write_array, write_metadata
from ...shared.cache.spec import CacheSpec
from ...shared.cache.storage import FileRecord, LocalStorage, ReadStorage, scratch_folder
from ...shared.cache.strings import encode_strings
from ...shared.device import describe_device
from ...shared.distribution import versions_with
from ...shared.errors import MEND, CacheCorruptError, CacheMismatchError
from .calibrate import CodecSample
from .scan import Scan


def ensure_index(
    storage: LocalStorage,
    manifest: Manifest | None,
    spec: CacheSpec,
    scan: Scan,
    sample: CodecSample,
) -> Manifest:
    """Make the index of a cache, or what is missing of it; return its manifest.

    A `manifest` of None was never there, or was lost; `spec` is that of it, if there is one.
    """
    if manifest and is_index_whole(storage, manifest):
        return manifest
    owners = {manifest.cache_id} if manifest else _committed_cache_ids(storage)
    if not owners:
        return write_index(storage, spec, scan, sample)
    with scratch_folder(storage) as scratch:
        made = write_index(scratch, spec, scan, sample, storage)
        if made.cache_id not in owners:
            raise CacheMismatchError(
                f"{storage} has lost files of its index and holds cache {min(owners)}; with these "
                f"options, sources and versions this would be cache {made.cache_id}. Run the very "
                "command it was begun with, where it was begun, put the files there from a copy, "
                "or build into another folder with --out"
            )
        for name in made.files:
            storage.ensure(name, scratch.read(name))
        if manifest is None:
            storage.ensure(MANIFEST_NAME, scratch.read(MANIFEST_NAME))
    return manifest or made


def write_index(
    storage: LocalStorage,
    spec: CacheSpec,
    scan: Scan,
    sample: CodecSample,
    shared: LocalStorage | None = None,
) -> Manifest:
    """Permute the rows and publish everything that says what they are; the manifest comes last.

    Tables of codecs are fit to `sample`, if they are not there yet. They are published in `shared`
    first, if that is another place than `storage`.
    """
    shared = shared or storage
    manifest = draft_manifest(spec, scan)
    groups = map(names.metadata_file, names.GROUPS)
    files = {name: storage.ensure(name, GROUP_METADATA) for name in groups}
    for layout, values in index_arrays(manifest, scan):
        files |= write_array(storage, layout, values)
    for array, layout in spec.codec_layouts(files).items():
        name = layout.shard_name(0)
        make = partial(sample.table, array, spec.image(array).codec.record_bytes)
        files[name] = publish_table(shared, layout, make)
        if shared is not storage:
            storage.write(name, shared.read(name))
        files |= write_metadata(storage, layout)
        for group in map(names.metadata_file, names.parents(layout.name)):
            files[group] = storage.ensure(group, GROUP_METADATA)
    libraries = versions_with("torch", "open_clip_torch", "pillow", "simplejpeg", "numpy", "zarr")
    built_with = {**libraries, "device": describe_device(sample.teacher.device)}
    manifest = replace(manifest, files=files, built_with=built_with)
    storage.write(MANIFEST_NAME, encode_record(manifest.to_json()))
    return manifest


def publish_table(
    storage: LocalStorage, layout: ArrayLayout, make: Callable[[], Array]
) -> FileRecord:
    """Publish a table of a codec unless there is one; return the record of what there then is.

    So all builders of a cache go on with the same one: of builders that begin at once, even on
    devices whose last bits differ, the first one decides, and none waits for another. The table's
    folder is named by a digest of all that decides it, so what a killed build of something else
    has left is not taken for this one's.
    """
    name = layout.shard_name(0)
    with scratch_folder(storage) as scratch:

        def held() -> FileRecord | None:
            """Return the record of what is there, if writing its numbers gives its bytes."""
            stored = storage.read(name)
            num_bytes = 4 * int(np.prod(layout.shape))
            if len(stored) < num_bytes:
                return None
            table = np.frombuffer(stored[:num_bytes], "<f4").reshape(layout.shape)
            record = write_array(scratch, layout, table)[name]
            return record if scratch.read(name) == stored else None

        if storage.exists(name):
            record = held()
            if record is not None:
                return record
            storage.remove(name)  # Damaged.
        write_array(scratch, layout, make())
        storage.keep_first(name, scratch.read(name))
        record = held()
    if record is None:
        raise CacheCorruptError(f"{storage}/{name} is not what was published. {MEND}")
    return record


def draft_manifest(spec: CacheSpec, scan: Scan) -> Manifest:
    """Return the manifest of a cache without its files, and without what built them."""
    return Manifest(
        spec=spec,
        num_labels=len(scan.labels),
        num_label_bytes=sum(len(label.encode()) for label in scan.labels),
        num_rejected=len(scan.rejected["source"]),
        built_with={},
        files={},
    )


def index_arrays(manifest: Manifest, scan: Scan) -> Iterator[tuple[ArrayLayout, Array]]:
    """Yield every array that says what rows are, with its values."""
    order = scan.order(manifest.spec.seed)
    strings = encode_strings(scan.labels)
    yield from (
        (layout, scan.rows[key][order]) for key, layout in manifest.spec.row_layouts().items()
    )
    yield from ((layout, strings[key]) for key, layout in manifest.label_layouts().items())
    yield from ((layout, scan.rejected[key]) for key, layout in manifest.rejected_layouts().items())


def is_index_whole(storage: ReadStorage, manifest: Manifest) -> bool:
    """Return whether every file of the index is there; a repair removes those that are damaged."""
    return all(storage.size(name) == file.num_bytes for name, file in manifest.files.items())


def _committed_cache_ids(storage: ReadStorage) -> set[str]:
    """Return the caches that the readable commit records below `storage` belong to."""
    owners = set()
    for name in storage.names(names.COMMITS_FOLDER):
        try:
            owners.add(str(read_record(storage, name)["cache_id"]))
        except (CacheCorruptError, KeyError):
            continue
    return owners
