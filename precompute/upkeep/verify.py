"""`clipocr cache verify`: whether every byte of a cache is what was committed, and undoing damage.

    records ──► every file they vouch for ──► numbers in tables

A cache without a seal is sound, because readers then take its records. So is one with files that no
record names, because nobody reads them: they belong to builds at work, or killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ...shared.ahead import map_ahead
from ...shared.cache import names
from ...shared.cache.names import COMMITS_FOLDER, MANIFEST_NAME, SEAL_NAME
from ...shared.cache.reader import read_manifest, read_record
from ...shared.cache.records import (
    REJECTION_REASONS,
    Committed,
    Manifest,
    Record,
    TextRecord,
    UnitRecord,
    WeightsRecord,
    parse_record,
)
from ...shared.cache.remote import open_storage
from ...shared.cache.shards import GROUP_METADATA, Array, ArrayReader
from ...shared.cache.storage import FileRecord, LocalStorage, ReadStorage
from ...shared.errors import CacheCorruptError, CacheMissingError, CacheUnavailableError
from ...shared.progress import progress_bar
from ..builder.scan import hash_keys

_INDEX, _SEAL = "index", "seal"
_BLOCK_BYTES = 1 << 23
_WRONG = "is not what was committed"

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, order=True)
class Fault:
    """Something in a cache that is not what was committed."""

    part: str
    """``view0/unit-00003``, ``text/char-36``, ``teacher`` (its weights), ``index`` (manifest, rows,
    labels, rejects), ``seal``, or ``view0`` for the Zarr metadata that its units share."""
    file: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class VouchedFile:
    """A file that a record vouches for."""

    part: str
    record: FileRecord
    metadata: bytes | None
    """What it must hold, if it is Zarr metadata."""


@dataclass(kw_only=True)
class VerifyReport:
    """What a verification found."""

    manifest: Manifest | None = None
    """None: unreadable, or of another cache; then nothing else was judged."""
    committed: Committed = field(default_factory=Committed)
    """Sound records."""
    is_sealed: bool = False
    files: dict[str, VouchedFile] = field(default_factory=dict)
    """Every file that a record vouches for, by name."""
    faults: list[Fault] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Size of all files, as committed."""
        return sum(file.record.num_bytes for file in self.files.values())

    def blame(self, part: str, file: str, problem: str) -> None:
        """Add a fault."""
        self.faults.append(Fault(part=part, file=file, problem=problem))


def verify_cache(place: str | Path, *, jobs: int = 1) -> VerifyReport:
    """Check every record of a cache, every file they vouch for, and what its tables say.

    Sealed or half built, folder or address; a build may go on meanwhile. `jobs` threads read.
    """
    storage, found = open_storage(place), VerifyReport()
    _check_records(storage, found)
    if found.manifest is not None:
        _check_files(storage, found, jobs)
        _check_numbers(storage, found, found.manifest)
    found.faults.sort()
    return found


def _check_records(storage: ReadStorage, found: VerifyReport) -> None:
    """Read the manifest, the seal and every record, and compare them with one another."""
    # The seal before the records, because a build that goes on meanwhile adds to both.
    seal, seal_problem = _try(lambda: read_record(storage, SEAL_NAME))
    found.is_sealed = seal_problem != "is missing"
    stored = {
        names.unit_of_record(file): _try(partial(read_record, storage, file))
        for file in storage.names(COMMITS_FOLDER)
    }
    manifest, problem = _try(lambda: read_manifest(storage))
    if manifest is None:
        problem = problem or "is missing"
        if problem == "is missing" and not stored and not found.is_sealed:
            raise CacheMissingError(f"{storage} is not a feature cache (no {MANIFEST_NAME})")
        found.blame(_INDEX, MANIFEST_NAME, problem)
        return
    owners = {data["cache_id"] for data, _ in stored.values() if data and "cache_id" in data}
    if len(owners) == 1 and manifest.cache_id not in owners:
        # No record carries the manifest's cache id and all carry one other: it was replaced.
        problem = f"is of cache {manifest.cache_id}, but every record is of {owners.pop()}"
        found.blame(_INDEX, MANIFEST_NAME, problem)
        return
    found.manifest = manifest
    if not _vouch(found, manifest, None):
        raise CacheCorruptError(
            f"{storage}/{MANIFEST_NAME} does not vouch for the index it plans, and no build mends "
            "that. Put it there from a copy of the cache, or build the cache anew"
        )
    for unit, (data, problem) in stored.items():
        record = _parse(unit, data, manifest) if data else None
        if record is None or not _vouch(found, manifest, record):
            problem = problem or f"is not the record of {unit} that the manifest plans"
            found.blame(unit, names.record_file(unit), problem)
    # A seal that is older than some of the records stays true.
    sealed, sound = seal.get("commits") if seal else None, found.committed.by_name
    if sealed is None and found.is_sealed:
        found.blame(_SEAL, SEAL_NAME, seal_problem or "is another record, not a seal")
    for unit, said in (sealed or {}).items():
        is_other = said["cache_id"] != manifest.cache_id
        if is_other or (unit in sound and stored[unit][0] != said):
            found.blame(_SEAL, SEAL_NAME, f"says something else of {unit} than its record")
            break
        if unit not in stored:
            found.blame(unit, names.record_file(unit), f"is missing, though {SEAL_NAME} repeats it")


def _try(read: Callable[[], _Result]) -> tuple[_Result | None, str]:
    """Return what `read` returns, or None and what is wrong with its file."""
    try:
        return read(), ""
    except CacheUnavailableError:
        raise
    except CacheMissingError:
        return None, "is missing"
    except CacheCorruptError:
        return None, _WRONG
    except OSError as e:
        return None, f"cannot be read: {e.strerror or e}"


def _parse(unit: str, data: dict[str, Any], manifest: Manifest) -> Record | None:
    """Return the record of a unit, or None if it is not one that the manifest plans."""
    try:
        record = parse_record(unit, data, manifest.cache_id)
    except ValueError:
        return None
    is_planned = not isinstance(record, UnitRecord) or (
        record.unit_idx < manifest.spec.num_units
        and record.rows == manifest.spec.unit_range(record.unit_idx)
        and all(row in range(*record.rows) for row in record.bad_rows)
    )
    return record if is_planned else None


def _vouch(found: VerifyReport, manifest: Manifest, record: Record | None) -> bool:
    """Add the files of a record, or of the index; false if it does not name just those."""
    unit = part = _INDEX if record is None else record.name
    files = manifest.files if record is None else record.files
    if record is None:
        layouts = manifest.index_layouts()
        groups = [*names.GROUPS, *(g for a in layouts for g in names.parents(a.name))]
    elif isinstance(record, UnitRecord):
        part = names.parents(record.name)[0]
        layouts = list(manifest.spec.image_layouts(record.view_idx).values())
        groups = [names.view_group(record.view_idx)]
    elif isinstance(record, TextRecord):
        layouts, groups = list(record.spec.layouts(manifest.num_labels).values()), [record.name]
    else:
        layouts, groups = [], []
    if isinstance(record, UnitRecord):
        shards = [layout.shard_name(record.unit_idx) for layout in layouts]
    elif isinstance(record, WeightsRecord):
        shards = [names.WEIGHTS_FILE]
    else:
        shards = [name for layout in layouts for name in layout.shard_names]
    metadata = dict.fromkeys(map(names.metadata_file, groups), GROUP_METADATA)
    metadata |= {names.metadata_file(layout.name): layout.metadata() for layout in layouts}
    if files.keys() != {*metadata, *shards}:
        return False
    if record is not None:
        found.committed.add(record)
    for name, file in files.items():
        owner = part if name in metadata else unit
        found.files[name] = VouchedFile(part=owner, record=file, metadata=metadata.get(name))
    return True


def _check_files(storage: ReadStorage, found: VerifyReport, jobs: int) -> None:
    """Read every file through and compare it with its record."""

    def check(name: str) -> str:
        expected = found.files[name].record
        digest, problem = _try(lambda: _digest(storage, name, expected.num_bytes))
        return problem or ("" if digest == expected.sha256 else _WRONG)

    with (
        progress_bar(total=found.num_bytes, desc="verify", unit="B", unit_scale=True) as progress,
        ThreadPoolExecutor(jobs) as executor,
    ):
        problems = map_ahead(executor, check, list(found.files), 2 * jobs)
        for (name, file), problem in zip(found.files.items(), problems, strict=True):
            progress.update(file.record.num_bytes)
            if problem:
                found.blame(file.part, name, problem)


def _digest(storage: ReadStorage, name: str, num_bytes: int) -> str:
    """Return the SHA-256 of a file of that size, and nothing of any other."""
    digest = hashlib.sha256()
    for start in range(0, num_bytes, _BLOCK_BYTES):
        block = np.empty(min(_BLOCK_BYTES, num_bytes - start), np.uint8)
        storage.read_into(block, name, start)
        digest.update(block.data)
    return digest.hexdigest() if storage.size(name) == num_bytes else ""


def _check_numbers(storage: ReadStorage, found: VerifyReport, manifest: Manifest) -> None:
    """Check the numbers of sound tables, each of which points at something.

    Also that every unit was made of just the rows that the index has there.
    """
    damaged = {names.array_of(fault.file) for fault in found.faults}
    spec, labels = manifest.spec, manifest.label_layouts()
    rows, rejected = spec.row_layouts(), manifest.rejected_layouts()
    # Arrays, and the numbers [low, stop) that each may hold.
    of_index = [
        (rows["source"], 0, len(spec.sources)),
        (rows["lmdb_index"], 1, max(s.num_samples for s in spec.sources) + 1),
        (rows["label"], 0, manifest.num_labels),
        (rejected["source"], 0, len(spec.sources)),
        (rejected["reason"], 0, len(REJECTION_REASONS)),
        (labels["offsets"], 0, manifest.num_label_bytes + 1),
    ]
    tables = [(_INDEX, manifest.files, of_index)]
    for text in found.committed.texts.values():
        layouts = text.spec.layouts(manifest.num_labels)
        of_text = [
            (layouts["of_label"], -1, text.spec.num_strings),
            (layouts["nodes"], 0, text.spec.num_prefixes),
            (layouts["offsets"], 0, text.spec.num_string_bytes + 1),
        ]
        tables.append((text.name, text.files, of_text))
    for part, files, arrays in tables:
        for layout, low, stop in arrays:
            if layout.name not in damaged:
                values = ArrayReader(storage, layout, files).all()
                if problem := _number_problem(layout.name, values, low, stop):
                    remedy = "; no repair mends that, build the cache anew" * (part == _INDEX)
                    found.blame(part, layout.name, problem + remedy)
    keys = {
        key: ArrayReader(storage, rows[key], manifest.files).all()
        for key in ("source", "lmdb_index")
        if rows[key].name not in damaged
    }
    for unit in found.committed.units.values() if len(keys) == 2 else ():
        at = slice(*unit.rows)
        if hash_keys({key: values[at] for key, values in keys.items()}) != unit.keys_sha256:
            problem = "was made of other rows than the index has there"
            found.blame(unit.name, names.record_file(unit.name), problem)


def _number_problem(array: str, values: Array, low: int, stop: int) -> str:
    """Return what is wrong with the numbers of an array, or nothing."""
    if array.endswith("/offsets"):
        grows = values[0] == low and values[-1] == stop - 1 and (values[1:] >= values[:-1]).all()
        return "" if grows else f"holds offsets that do not grow from {low} to {stop - 1}"
    if values.size and not low <= int(values.min()) <= int(values.max()) < stop:
        return f"holds numbers from {values.min()} to {values.max()}, expected {low} to {stop - 1}"
    return ""


class Repair(NamedTuple):
    """What `repair_cache` did."""

    taken_back: tuple[str, ...]
    """Parts of the cache to build again."""
    rewritten: tuple[str, ...]
    """Zarr metadata that was written again as it was."""


def repair_cache(path: Path, report: VerifyReport) -> Repair:
    """Remove what is damaged, so that the build of this cache makes just that again.

    First the records of damaged units, text tables and weights go, then the seal, then the damaged
    files; so if it is killed in between, the next verification finds the rest. Of a damaged index
    the files go, and the manifest if it is damaged itself: the build makes them from its sources,
    and keeps them only if they are those that every unit was made by. No build may run meanwhile.
    """
    storage = LocalStorage(path)
    known = {name: file.metadata for name, file in report.files.items()}
    rest = [fault for fault in report.faults if known.get(fault.file) is None]
    metadata = {f.file: data for f in report.faults if (data := known.get(f.file)) is not None}
    for name, data in metadata.items():
        storage.write(name, data)
    parts = sorted({fault.part for fault in rest} - {_SEAL})
    for part in parts:
        storage.remove(names.record_file(part))  # There is none of the index.
    if set(parts) - {_INDEX}:
        storage.remove(SEAL_NAME)
    for fault in rest:
        storage.remove(fault.file)
    return Repair(taken_back=tuple(parts), rewritten=tuple(sorted(metadata)))
