"""`clipocr cache verify`: whether every byte of a cache is what was committed, and undoing damage.

    records ──► every file they vouch for ──► what the tables say ──► files that nobody names

A **fault** is a record or a file that is not what was written, or that says what cannot be. A
**note** is none: files that no record names (of unfinished units, or left by killed builders), a
seal that is older than some records (it stays true), a finished cache that lost its seal (readers
take the records).

Repairing a cache means to take back what is damaged; its build makes it again, to the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...shared.ahead import map_ahead
from ...shared.cache import names
from ...shared.cache.memory import Bytes
from ...shared.cache.names import COMMITS_FOLDER, MANIFEST_NAME, SEAL_NAME
from ...shared.cache.remote import open_storage
from ...shared.cache.shards import GROUP_METADATA
from ...shared.cache.storage import LocalStorage, ReadStorage
from ...shared.errors import CacheMissingError, CacheUnavailableError
from .verify_records import INDEX, SEAL, Fault, VouchedFile, check_records, named, vouched_files
from .verify_tables import check_tables

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What a verification found."""

    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    files: Mapping[str, VouchedFile]
    """Every file that was compared with a record."""
    commits: tuple[str, ...]
    """Units and text tables whose record is sound."""
    num_units_planned: int
    """In a view; 0 without a manifest to go by."""
    is_sealed: bool

    @property
    def num_bytes(self) -> int:
        """Size of all files, as committed."""
        return sum(file.record.num_bytes for file in self.files.values())


def verify_cache(place: str | Path, *, jobs: int = 1) -> VerifyReport:
    """Check every record of a cache, every file they vouch for, and what its tables say.

    Reads each byte once, in blocks, on `jobs` threads; sealed or half built, folder or address. A
    build may go on meanwhile.

    Raises:
        CacheMissingError: there is no cache at all.
        CacheMismatchError: it was written by another version of the format.
        CacheUnavailableError: the address does not answer.
    """
    storage = open_storage(place)
    records = check_records(storage)
    files = vouched_files(records)
    faults = records.faults
    faults += _check_files(storage, list(files.values()), jobs)
    notes = records.notes
    if records.manifest is not None:
        faults += check_tables(storage, records.manifest, records.committed, faults)
        notes += _strays(storage, files)
    return VerifyReport(
        faults=tuple(sorted(faults)),
        notes=tuple(notes),
        files=files,
        commits=tuple(record.name for record in records.committed),
        num_units_planned=records.manifest.spec.num_units if records.manifest else 0,
        is_sealed=records.is_sealed,
    )


def _check_files(storage: ReadStorage, files: Sequence[VouchedFile], jobs: int) -> list[Fault]:
    """Read every file through and compare it with its record."""
    faults = []
    num_bytes = sum(file.record.num_bytes for file in files)
    with (
        tqdm(total=num_bytes, desc="verify", unit="B", unit_scale=True) as progress,
        ThreadPoolExecutor(jobs) as executor,
    ):
        checked = map_ahead(executor, partial(_file_problem, storage), files, 2 * jobs)
        for file, problem in zip(files, checked, strict=True):
            progress.update(file.record.num_bytes)
            if problem:
                faults.append(Fault(unit=file.unit, file=file.name, problem=problem))
    return faults


def _file_problem(storage: ReadStorage, file: VouchedFile) -> str:
    """Return what is wrong with a file, or nothing."""
    try:
        if file.shard_idx is None:
            return _metadata_problem(storage, file)
        num_bytes = storage.size(file.name)
        if num_bytes is None:
            return "is missing"
        if num_bytes != file.record.num_bytes:
            return f"has {num_bytes:,} bytes, {file.record.num_bytes:,} were committed"
        return _shard_problem(storage, file)
    except CacheUnavailableError:
        raise
    except CacheMissingError:
        return "is missing"
    except OSError as e:
        return f"cannot be read: {e.strerror or e}"


def _metadata_problem(storage: ReadStorage, file: VouchedFile) -> str:
    digest = hashlib.sha256(storage.read(file.name)).hexdigest()
    is_sound = digest in {record.sha256 for record in (file.record, *file.younger)}
    return "" if is_sound else "is not what was committed"


def _shard_problem(storage: ReadStorage, file: VouchedFile) -> str:
    record, layout = file.record, file.layout
    assert layout is not None, file
    assert file.shard_idx is not None, file
    lengths, wrong = _chunk_lengths(storage, file), []
    digest, position = hashlib.sha256(), 0
    for chunk_idx, num_bytes in enumerate(lengths):
        stored = _read(storage, file.name, position, num_bytes)
        digest.update(stored.data)
        if not layout.chunk_is(stored, record, chunk_idx):
            wrong.append(chunk_idx)
        position += num_bytes
    for start in range(position, record.num_bytes, _BLOCK_BYTES):
        num_bytes = min(_BLOCK_BYTES, record.num_bytes - start)
        digest.update(_read(storage, file.name, start, num_bytes).data)
    if wrong:
        first = file.shard_idx * layout.shard_rows + wrong[0] * layout.chunk_rows
        last = min(first + layout.chunk_rows, layout.shape[0]) - 1
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"chunk {wrong[0]} (rows {first:,} to {last:,}){more} is not what was committed"
    is_sound = bool(lengths) and digest.hexdigest() == record.sha256
    return "" if is_sound else "is not what was committed"


def _read(storage: ReadStorage, name: str, start: int, num_bytes: int) -> Bytes:
    block = np.empty(num_bytes, np.uint8)
    storage.read_into(block, name, start)
    return block


def _chunk_lengths(storage: ReadStorage, file: VouchedFile) -> list[int]:
    """Return the length of each chunk of a shard by its index; none if that cannot be."""
    layout = file.layout
    assert layout is not None, file
    assert file.shard_idx is not None, file
    index_at = file.record.num_bytes - layout.index_bytes
    if index_at < 0:
        return []
    index = _read(storage, file.name, index_at, layout.index_bytes)
    bounds = layout.chunk_bounds(file.shard_idx, index, index_at) or [0]
    return [stop - start for start, stop in itertools.pairwise(bounds)]


def _strays(storage: ReadStorage, files: Mapping[str, VouchedFile]) -> list[str]:
    """Return notes on files that nothing names."""
    ours = {MANIFEST_NAME, SEAL_NAME, *files}
    others = [name for name in storage.names("") if name not in ours]
    leftovers = [name for name in others if name.startswith(".tmp/")]
    strays = [name for name in others if not name.startswith((".tmp/", f"{COMMITS_FOLDER}/"))]
    notes = []
    if leftovers:
        notes.append(f"files in .tmp, of builders at work or killed: {len(leftovers):,}")
    if strays:
        notes.append(
            f"nobody reads {named(strays)}: no record names them. What belongs to an unfinished "
            "unit is replaced when its build goes on"
        )
    return notes


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What `repair_cache` did."""

    uncommitted: tuple[str, ...] = ()
    """Units and text tables to build again."""
    index_files: tuple[str, ...] = ()
    """Files of the index to make again; if the manifest is one, nothing else was judged."""
    rewritten: tuple[str, ...] = ()
    """Metadata files that could be written again as they were."""
    beyond: tuple[Fault, ...] = ()
    """What no build makes again. If the manifest says what cannot be, nothing was touched."""


def repair_cache(path: Path, report: VerifyReport) -> Repair:
    """Take back what is damaged, so that the build of this cache makes just that again.

    First the records of damaged units and text tables go, then the seal, then the damaged files;
    killed in between, the rest is still found and mended by the next repair. Zarr metadata is
    written again in place. Of a damaged index the files go, the manifest among them if it is lost
    itself: the build makes them from its sources, and keeps them only if they are those that every
    unit was made by. Nobody should be building meanwhile.
    """
    storage = LocalStorage(path)
    metadata = [f for f in report.faults if f.file in report.files and names.is_metadata(f.file)]
    rest = [fault for fault in report.faults if fault not in metadata]
    # A manifest that is readable and of this cache, but wrong, was written so: no build mends it.
    is_manifest_ours = report.num_units_planned > 0
    wrong = tuple(fault for fault in rest if fault.file == MANIFEST_NAME and is_manifest_ours)
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
    is_same = hashlib.sha256(data).hexdigest() in {
        record.sha256 for record in (file.record, *file.younger)
    }
    if is_same:
        storage.write(file.name, data)
    return is_same
