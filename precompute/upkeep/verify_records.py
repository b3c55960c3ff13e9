"""The records of a cache as `clipocr cache verify` judges them, and the files they vouch for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...shared.cache import names
from ...shared.cache.json_record import decode_record, encode_record
from ...shared.cache.names import COMMITS_FOLDER, MANIFEST_NAME, SEAL_NAME
from ...shared.cache.records import Committed, Manifest, Record, TextRecord, parse_record
from ...shared.cache.shards import ArrayLayout
from ...shared.cache.spec import FORMAT_VERSION
from ...shared.cache.storage import FileRecord, ReadStorage
from ...shared.errors import (
    CacheCorruptError,
    CacheMismatchError,
    CacheMissingError,
    CacheUnavailableError,
)

INDEX, SEAL = "index", "seal"
_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True, order=True)
class Fault:
    """Something in a cache that is not what was committed."""

    unit: str
    """What it is a part of: ``view0/unit-00003``, ``text/char-36``, ``index`` (manifest, rows,
    labels, rejects), ``seal``, or ``view0`` for the Zarr metadata that its units share."""
    file: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class VouchedFile:
    """A file that a record vouches for."""

    unit: str
    name: str
    record: FileRecord
    layout: ArrayLayout | None
    """Of the array it belongs to; None for the metadata of a group."""
    shard_idx: int | None
    """None for metadata."""
    younger: tuple[FileRecord, ...] = ()
    """Metadata only: what later records say, if Zarr was updated between two units of a view."""


@dataclass(kw_only=True)
class Records:
    """What the records of a cache say, and what is wrong with them."""

    manifest: Manifest | None = None
    """None: unreadable, or of another cache; nothing else can be judged without it."""
    committed: Committed = field(default_factory=Committed)
    """Sound ones."""
    is_sealed: bool = False
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_records(storage: ReadStorage) -> Records:
    """Read the manifest, the seal and every commit record, and compare them with one another.

    Raises:
        CacheMissingError: there is no cache at all.
        CacheMismatchError: it was written by another version of the format.
        CacheUnavailableError: the address does not answer.
    """
    # The seal before the records: a builder at work beside us may add to both meanwhile.
    seal, seal_problem = _read_record(storage, SEAL_NAME)
    record_files = storage.names(COMMITS_FOLDER)
    manifest, problem = _read_manifest(storage, is_cache=bool(record_files) or seal is not None)
    found = Records(manifest=manifest, is_sealed=seal_problem != "is missing")
    if manifest is None:
        found.faults.append(Fault(unit=INDEX, file=MANIFEST_NAME, problem=problem))
        return found
    owners, foreign = set(), []
    for file in record_files:
        unit = names.unit_of_record(file)
        data, problem = _read_record(storage, file)
        owner = data.get("cache_id", manifest.cache_id) if data else manifest.cache_id
        record, problem = _record(data, manifest, unit) if data else (None, problem)
        if record is not None:
            found.committed.add(record)
        elif owner != manifest.cache_id:
            owners.add(owner)
            foreign.append(Fault(unit=unit, file=file, problem=problem))
        else:
            found.faults.append(Fault(unit=unit, file=file, problem=problem))
    if len(owners) == 1 and not len(found.committed):
        # No record is of this manifest's cache, and all are of one other: the manifest was
        # replaced.
        problem = f"is of cache {manifest.cache_id}, but every record is of {owners.pop()}"
        found.faults.append(Fault(unit=INDEX, file=MANIFEST_NAME, problem=problem))
        found.manifest = None
        return found
    found.faults += foreign
    if found.is_sealed:
        _check_seal(found, manifest, seal, seal_problem, set(record_files))
    elif _is_complete(found.committed, manifest):
        found.notes.append("everything is there but the seal; its cache build command makes it")
    return found


def _read_record(storage: ReadStorage, name: str) -> tuple[dict[str, Any] | None, str]:
    """Return a record, or None and what is wrong with it."""
    try:
        stored = storage.read(name)
        data = decode_record(stored, name)
    except CacheUnavailableError:
        raise
    except CacheMissingError:
        return None, "is missing"
    except CacheCorruptError:
        return None, "is not the record that was written"
    except OSError as e:
        return None, f"cannot be read: {e.strerror or e}"
    if encode_record(data) != stored:
        return None, "says what was written, but in other bytes"
    return data, ""


def _read_manifest(storage: ReadStorage, *, is_cache: bool) -> tuple[Manifest | None, str]:
    data, problem = _read_record(storage, MANIFEST_NAME)
    if data is None:
        if not is_cache and not storage.exists(MANIFEST_NAME):
            raise CacheMissingError(f"{storage} is not a feature cache (no {MANIFEST_NAME})")
        return None, f"{problem}; nothing else can be judged without it"
    if data.get("format") != "clipocr-cache":
        return None, "is another record, not a manifest; nothing else can be judged without it"
    version = data["spec"].get("format_version")
    if version != FORMAT_VERSION:
        raise CacheMismatchError(
            f"{storage} has format version {version}, this clipocr checks {FORMAT_VERSION}; "
            "use the clipocr version that wrote it"
        )
    return Manifest.from_json(data), ""


def _record(data: dict[str, Any], manifest: Manifest, unit: str) -> tuple[Record | None, str]:
    """Return the record at the place of `unit`, or None and what is wrong with it."""
    try:
        record = parse_record(unit, data)
    except ValueError:
        return None, "is another record, not that of a unit or a text table"
    if record.cache_id != manifest.cache_id:
        return None, f"belongs to cache {record.cache_id}, not to this one ({manifest.cache_id})"
    if record.name != unit:
        return None, f"is the record of {record.name}"
    if not isinstance(record, TextRecord):
        spec, (start, stop) = manifest.spec, record.rows
        is_planned = (
            record.unit_idx < spec.num_units
            and record.rows == spec.unit_range(record.unit_idx)
            and all(start <= row < stop for row in record.bad_rows)
        )
        if not is_planned:
            return None, "does not fit what the manifest plans"
    missing = {file.name for file in _files_of(record, manifest)} - set(record.files)
    return (None, f"does not vouch for {min(missing)}") if missing else (record, "")


def _check_seal(
    found: Records,
    manifest: Manifest,
    data: dict[str, Any] | None,
    problem: str,
    record_files: set[str],
) -> None:
    """Compare the seal with the records; both repeat the same, or the seal is older."""

    def blame(problem: str) -> None:
        found.faults.append(Fault(unit=SEAL, file=SEAL_NAME, problem=problem))

    records = data.get("commits") if data else None
    held = found.committed.by_name
    if not isinstance(records, dict):
        blame(problem or "is another record, not a seal")
        return
    for unit, stored in records.items():
        record, problem = _record(stored, manifest, unit)
        file = names.record_file(unit)
        if record is None:
            blame(f"its record of {unit} {problem}")
        elif file not in record_files:
            problem = f"is missing, though {SEAL_NAME} repeats it"
            found.faults.append(Fault(unit=unit, file=file, problem=problem))
        elif held.get(unit, record) != record:
            blame(f"vouches for another {unit} than its record")
    younger = sorted(set(held) - set(records))
    if younger:
        found.notes.append(
            f"{SEAL_NAME} is older than {named(younger)}, and readers see what it names; the next "
            "cache build or cache text command seals the cache again"
        )


def _is_complete(committed: Committed, manifest: Manifest) -> bool:
    num_views = len({view_idx for view_idx, _ in committed.units})
    num_units = num_views * manifest.spec.num_units
    return bool(committed.texts) and len(committed.units) == num_units > 0


def vouched_files(found: Records) -> dict[str, VouchedFile]:
    """Return every file that the manifest and the sound records vouch for, by name."""
    manifest = found.manifest
    if manifest is None:
        return {}
    groups = {name: _vouched(INDEX, name, manifest.files, None, None) for name in manifest.files}
    index = (
        manifest.spec.row_layouts(),
        manifest.label_layouts(),
        manifest.rejected_layouts(),
        manifest.codec_layouts(),
    )
    arrays = {
        file.name: file
        for layouts in index
        for layout in layouts.values()
        for file in _array_files(INDEX, INDEX, layout, range(layout.num_shards), manifest.files)
    }
    for name in sorted(set(arrays) - set(groups)):
        problem = f"does not vouch for {name}"
        found.faults.append(Fault(unit=INDEX, file=MANIFEST_NAME, problem=problem))
    files = groups | {name: file for name, file in arrays.items() if name in groups}
    for record in found.committed:
        for file in _files_of(record, manifest):
            known = files.setdefault(file.name, file)
            if file.record not in (known.record, *known.younger):
                younger = (*known.younger, file.record)
                files[file.name] = replace(known, younger=younger)
    return files


def _files_of(record: Record, manifest: Manifest) -> Iterator[VouchedFile]:
    """Yield the files that a record has to vouch for, with what it says of them."""
    if isinstance(record, TextRecord):
        owner, folder = record.name, record.name
        texts = record.spec.string_layouts() | record.spec.layouts(manifest.num_labels)
        shards = {layout: range(layout.num_shards) for layout in texts.values()}
    else:
        owner, folder = names.view_name(record.view_idx), names.view_group(record.view_idx)
        images = manifest.spec.image_layouts(record.view_idx)
        shards = {layout: range(record.unit_idx, record.unit_idx + 1) for layout in images.values()}
    yield _vouched(owner, names.metadata_file(folder), record.files, None, None)
    for layout, of_record in shards.items():
        yield from _array_files(owner, record.name, layout, of_record, record.files)


def _array_files(
    metadata_unit: str,
    unit: str,
    layout: ArrayLayout,
    shards: Sequence[int],
    files: Mapping[str, FileRecord],
) -> Iterator[VouchedFile]:
    yield _vouched(metadata_unit, names.metadata_file(layout.name), files, layout, None)
    for shard_idx in shards:
        yield _vouched(unit, layout.shard_name(shard_idx), files, layout, shard_idx)


def _vouched(
    unit: str,
    name: str,
    files: Mapping[str, FileRecord],
    layout: ArrayLayout | None,
    shard_idx: int | None,
) -> VouchedFile:
    record = files.get(name, FileRecord(num_bytes=0, sha256=""))
    return VouchedFile(unit=unit, name=name, record=record, layout=layout, shard_idx=shard_idx)


def named(some: Sequence[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(some) - _MAX_NAMED:,} more" if len(some) > _MAX_NAMED else ""
    return ", ".join(some[:_MAX_NAMED]) + more
