"""`clipocr cache verify`: whether every byte of a cache is what was committed, and undoing damage.

    records ──► every file they vouch for, read once ──► numbers in tables ──► files without record

A **fault** is a record or a file that is not what was written, or that says what cannot be. A
**note** is none: files that no record names, and a seal that is older than some records (it stays
true). A cache without a seal is sound: readers take its records.

Repairing a cache means to remove what is damaged; its build makes it again, to the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...shared.ahead import map_ahead
from ...shared.cache import names
from ...shared.cache.memory import Bytes
from ...shared.cache.names import COMMITS_FOLDER, MANIFEST_NAME, SEAL_NAME
from ...shared.cache.records import REJECTION_REASONS, Committed, Manifest
from ...shared.cache.remote import open_storage
from ...shared.cache.shards import GROUP_METADATA, Array, ArrayLayout
from ...shared.cache.storage import LocalStorage, ReadStorage
from ...shared.errors import CacheMissingError, CacheUnavailableError
from ..builder.scan import hash_keys
from .verify_records import INDEX, SEAL, Fault, VerifyReport, VouchedFile, check_records, listed

_WRONG = "is not what was committed"


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """What the numbers of a table may be, because each points at something."""

    unit: str
    layout: ArrayLayout
    low: int
    stop: int
    are_offsets: bool = False
    """Whether they also grow from `low` to the last, `stop` - 1."""


def verify_cache(place: str | Path, *, jobs: int = 1) -> VerifyReport:
    """Check every record of a cache, every file they vouch for, and what its tables say.

    Reads each byte once, on `jobs` threads; sealed or half built, folder or address. A build may go
    on meanwhile. Of the tables the numbers are held in memory till the end: 10 bytes a row, and
    4 bytes for each position of each label of a text table.

    Raises:
        CacheMissingError: there is no cache at all.
        CacheMismatchError: it was written by another version of the format.
        CacheUnavailableError: the address does not answer.
    """
    storage = open_storage(place)
    found = check_records(storage)
    if found.manifest is not None:
        numbers = list(_tables(found.manifest, found.committed))
        tables = _read_files(storage, found, {table.layout.name for table in numbers}, jobs)
        for table in numbers:
            rows = tables.get(table.layout.name)
            if rows is not None and (problem := _number_problem(table, rows)):
                # The records agree with the file, so the numbers were written wrong.
                file = MANIFEST_NAME if table.unit == INDEX else table.layout.name
                found.blame(table.unit, file, f"{table.layout.name} {problem}")
        _compare_keys(found, found.manifest, tables)
        found.notes += _strays(storage, found.files)
    found.faults.sort()
    return found


def _tables(manifest: Manifest, committed: Committed) -> Iterator[_Numbers]:
    """Yield what is known of the numbers in the index and in the text tables."""
    spec, rows, rejected = manifest.spec, manifest.spec.row_layouts(), manifest.rejected_layouts()
    most = max(source.num_samples for source in spec.sources)
    for layout, low, stop in (
        (rows["source"], 0, len(spec.sources)),
        (rows["lmdb_index"], 1, most + 1),
        (rows["label"], 0, manifest.num_labels),
        (rejected["source"], 0, len(spec.sources)),
        (rejected["reason"], 0, len(REJECTION_REASONS)),
    ):
        yield _Numbers(unit=INDEX, layout=layout, low=low, stop=stop)
    strings = [(INDEX, manifest.label_layouts())]
    for record in committed.texts.values():
        text, layouts = record.spec, record.spec.layouts(manifest.num_labels)
        for key, low, stop in (("of_label", -1, text.num_strings), ("nodes", 0, text.num_prefixes)):
            yield _Numbers(unit=record.name, layout=layouts[key], low=low, stop=stop)
        strings.append((record.name, text.string_layouts()))
    for unit, layouts in strings:
        stop = layouts["utf8"].shape[0] + 1
        yield _Numbers(unit=unit, layout=layouts["offsets"], low=0, stop=stop, are_offsets=True)


def _read_files(
    storage: ReadStorage, found: VerifyReport, tables: set[str], jobs: int
) -> dict[str, Array]:
    """Read every file through and compare it with its record.

    Returns:
        The numbers of those of `tables` whose files are all sound, by array.
    """
    files = list(found.files.values())
    shards: dict[str, dict[int, list[Array]]] = {}

    def read(file: VouchedFile) -> tuple[str, list[Array]]:
        is_table = file.layout is not None and file.layout.name in tables
        return _read_file(storage, file, is_table)

    with (
        tqdm(total=found.num_bytes, desc="verify", unit="B", unit_scale=True) as progress,
        ThreadPoolExecutor(jobs) as executor,
    ):
        checked = map_ahead(executor, read, files, 2 * jobs)
        for file, (problem, chunks) in zip(files, checked, strict=True):
            progress.update(file.records[0].num_bytes)
            if problem:
                found.blame(file.unit, file.name, problem)
            elif chunks and file.layout is not None and file.shard_idx is not None:
                shards.setdefault(file.layout.name, {})[file.shard_idx] = chunks
    shapes = {file.layout.name: file.layout.shape for file in files if file.layout is not None}
    arrays = {
        name: np.concatenate([chunk for _, chunks in sorted(parts.items()) for chunk in chunks])
        for name, parts in shards.items()
    }
    return {name: rows for name, rows in arrays.items() if rows.shape == shapes[name]}


def _read_file(storage: ReadStorage, file: VouchedFile, is_table: bool) -> tuple[str, list[Array]]:
    """Return what is wrong with a file, or nothing, and the rows of a sound table's chunks."""
    try:
        if file.layout is None or file.shard_idx is None:
            digest = hashlib.sha256(storage.read(file.name)).hexdigest()
            return "" if digest in {r.sha256 for r in file.records} else _WRONG, []
        num_bytes, committed = storage.size(file.name), file.records[0].num_bytes
        if num_bytes is None:
            return "is missing", []
        if num_bytes != committed:
            return f"has {num_bytes:,} bytes, {committed:,} were committed", []
        return _read_shard(storage, file, file.layout, file.shard_idx, is_table)
    except CacheUnavailableError:
        raise
    except CacheMissingError:
        return "is missing", []
    except OSError as e:
        return f"cannot be read: {e.strerror or e}", []


def _read_shard(
    storage: ReadStorage, file: VouchedFile, layout: ArrayLayout, shard_idx: int, is_table: bool
) -> tuple[str, list[Array]]:
    def read(start: int, num_bytes: int) -> Bytes:
        block = np.empty(num_bytes, np.uint8)
        storage.read_into(block, file.name, start)
        return block

    record = file.records[0]
    index_at = record.num_bytes - layout.index_bytes
    index = read(index_at, layout.index_bytes) if index_at >= 0 else None
    bounds = None if index is None else layout.chunk_bounds(shard_idx, index, index_at)
    if index is None or bounds is None:
        return _WRONG, []
    digest = hashlib.sha256()
    wrong, rows = [], []
    for chunk_idx, (start, stop) in enumerate(pairwise(bounds)):
        stored = read(start, stop - start)
        digest.update(stored.data)
        if not layout.chunk_is(stored, record, chunk_idx):
            wrong.append(chunk_idx)
        elif is_table:
            rows.append(layout.decode_chunk(shard_idx, chunk_idx, stored))
    digest.update(index.data)
    if wrong:
        first = shard_idx * layout.shard_rows + wrong[0] * layout.chunk_rows
        last = min(first + layout.chunk_rows, layout.shape[0]) - 1
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"chunk {wrong[0]} (rows {first:,} to {last:,}){more} {_WRONG}", []
    return ("", rows) if digest.hexdigest() == record.sha256 else (_WRONG, [])


def _number_problem(table: _Numbers, rows: Array) -> str:
    """Return what is wrong with the numbers of a table, or nothing."""
    low, last = table.low, table.stop - 1
    if table.are_offsets:
        grows = rows[0] == low and rows[-1] == last and (rows[1:] >= rows[:-1]).all()
        return "" if grows else f"holds offsets that do not grow from {low} to {last}"
    if rows.size and not low <= int(rows.min()) <= int(rows.max()) <= last:
        return f"holds numbers from {rows.min()} to {rows.max()}, expected {low} to {last}"
    return ""


def _compare_keys(found: VerifyReport, manifest: Manifest, tables: Mapping[str, Array]) -> None:
    """Check that every unit was made of just the rows that the index has there."""
    layouts = manifest.spec.row_layouts()
    columns = {key: tables.get(layouts[key].name) for key in ("source", "lmdb_index")}
    digests: dict[tuple[int, int], str] = {}
    for record in found.committed.units.values():
        if record.rows not in digests:
            at = slice(*record.rows)
            rows = {key: column[at] for key, column in columns.items() if column is not None}
            digests[record.rows] = hash_keys(rows) if len(rows) == len(columns) else ""
        if digests[record.rows] not in ("", record.keys_sha256):
            problem = "was made of other rows than the index has there"
            found.blame(record.name, names.record_file(record.name), problem)


def _strays(storage: ReadStorage, files: Mapping[str, VouchedFile]) -> list[str]:
    """Return a note on files that no record names, if there are any."""
    own = {MANIFEST_NAME, SEAL_NAME, *files}
    strays = [
        name
        for name in storage.names("")
        if name not in own and not name.startswith(f"{COMMITS_FOLDER}/")
    ]
    return strays and [
        f"no record names {listed(strays)}, so they are not read: they belong to builds at work, "
        "or killed, and are removed or replaced when the build goes on"
    ]


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What `repair_cache` did."""

    uncommitted: tuple[str, ...] = ()
    """Units and text tables to build again."""
    index_files: tuple[str, ...] = ()
    """Files of the index to make again; if the manifest is one, nothing else was judged."""
    rewritten: tuple[str, ...] = ()
    """Metadata files that were written again as they were."""
    beyond: tuple[Fault, ...] = ()
    """What no build makes again. If the manifest says what cannot be, nothing was touched."""


def repair_cache(path: Path, report: VerifyReport) -> Repair:
    """Remove what is damaged, so that the build of this cache makes just that again.

    First the records of damaged units and text tables go, then the seal, then the damaged files; so
    if it is killed in between, the next verification finds the rest. Zarr metadata is written again
    in place. Of a damaged index the files go, and the manifest if it is damaged itself: the build
    makes them from its sources, and keeps them only if they are those that every unit was made by.
    No build may run meanwhile.
    """
    storage = LocalStorage(path)
    metadata = [f for f in report.faults if f.file in report.files and names.is_metadata(f.file)]
    rest = [fault for fault in report.faults if fault not in metadata]
    # A manifest that is readable and of this cache, but wrong, was written so: no build mends it.
    wrong = tuple(fault for fault in rest if fault.file == MANIFEST_NAME and report.manifest)
    if wrong:
        return Repair(beyond=wrong)
    rewritten = [fault.file for fault in metadata if _rewrite(storage, report.files[fault.file])]
    units = sorted({fault.unit for fault in rest if fault.unit not in (INDEX, SEAL)})
    for unit in units:
        storage.remove(names.record_file(unit))
    if units:
        storage.remove(SEAL_NAME)
    for fault in rest:
        storage.remove(fault.file)
    return Repair(
        uncommitted=tuple(units),
        index_files=tuple(fault.file for fault in rest if fault.unit == INDEX),
        rewritten=tuple(rewritten),
        beyond=tuple(fault for fault in metadata if fault.file not in rewritten),
    )


def _rewrite(storage: LocalStorage, file: VouchedFile) -> bool:
    """Write a metadata file again; false if this version of Zarr puts it differently."""
    data = GROUP_METADATA if file.layout is None else file.layout.metadata()
    is_same = hashlib.sha256(data).hexdigest() in {record.sha256 for record in file.records}
    if is_same:
        storage.write(file.name, data)
    return is_same
