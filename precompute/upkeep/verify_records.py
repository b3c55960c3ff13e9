"""The records of a cache as `clipocr cache verify` judges them, and the files they vouch for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...shared.cache import names
from ...shared.cache.json_record import decode_record, encode_record
from ...shared.cache.names import COMMITS_FOLDER, MANIFEST_NAME, SEAL_NAME
from ...shared.cache.records import Committed, Manifest, Record, UnitRecord, parse_record
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
    layout: ArrayLayout | None = None
    """Of the array it belongs to; None for the metadata of a group."""
    shard_idx: int | None = None
    """None for metadata."""
    records: tuple[FileRecord, ...] = ()
    """What records say of it. More than one only of metadata that the units of a view share, if
    Zarr was updated between two of them."""


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
    notes: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Size of all files, as committed."""
        return sum(file.records[0].num_bytes for file in self.files.values())

    def blame(self, unit: str, file: str, problem: str) -> None:
        """Add a fault."""
        self.faults.append(Fault(unit=unit, file=file, problem=problem))

    def vouch(self, expected: Iterable[VouchedFile], records: Mapping[str, FileRecord]) -> None:
        """Add the files of a record, with what it says of them."""
        for file in expected:
            known = self.files.setdefault(file.name, file)
            if records[file.name] not in known.records:
                said = (*known.records, records[file.name])
                self.files[file.name] = replace(known, records=said)


def check_records(storage: ReadStorage) -> VerifyReport:
    """Read the manifest, the seal and every record, and compare them with one another.

    Raises:
        CacheMissingError: there is no cache at all.
        CacheMismatchError: it was written by another version of the format.
        CacheUnavailableError: the address does not answer.
    """
    # The seal before the records, because a build that goes on meanwhile adds to both.
    seal, seal_problem = _read(storage, SEAL_NAME)
    record_files = storage.names(COMMITS_FOLDER)
    found = VerifyReport(is_sealed=seal_problem != "is missing")
    data, problem = _read(storage, MANIFEST_NAME)
    if problem == "is missing" and not record_files and not found.is_sealed:
        raise CacheMissingError(f"{storage} is not a feature cache (no {MANIFEST_NAME})")
    if data is None or data.get("format") != "clipocr-cache":
        problem = problem or "is another record, not a manifest"
        found.blame(INDEX, MANIFEST_NAME, f"{problem}; nothing else can be judged without it")
        return found
    version = data["spec"].get("format_version")
    if version != FORMAT_VERSION:
        raise CacheMismatchError(
            f"{storage} has format version {version}, this clipocr checks {FORMAT_VERSION}; "
            "use the clipocr version that wrote it"
        )
    manifest = Manifest.from_json(data)
    stored = {names.unit_of_record(file): _read(storage, file) for file in record_files}
    owners = {data["cache_id"] for data, _ in stored.values() if data and "cache_id" in data}
    if len(owners) == 1 and manifest.cache_id not in owners:
        # No record carries the manifest's cache id and all carry one other: it was replaced.
        problem = f"is of cache {manifest.cache_id}, but every record is of {owners.pop()}"
        found.blame(INDEX, MANIFEST_NAME, problem)
        return found
    found.manifest = manifest
    _vouch_for_index(found, manifest)
    for unit, (data, problem) in stored.items():
        record = None
        if data is not None:
            record, problem = _parse(unit, data, manifest)
        if record is None:
            found.blame(unit, names.record_file(unit), problem)
        else:
            found.committed.add(record)
            found.vouch(_files_of(record, manifest), record.files)
    if found.is_sealed:
        _compare_seal(found, seal, seal_problem, {unit: data for unit, (data, _) in stored.items()})
    return found


def _read(storage: ReadStorage, name: str) -> tuple[dict[str, Any] | None, str]:
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
    # The same content in other bytes, such as another space, is damage, too.
    is_same = encode_record(data) == stored
    return (data, "") if is_same else (None, "is not the record that was written")


def _parse(unit: str, data: dict[str, Any], manifest: Manifest) -> tuple[Record | None, str]:
    """Return the record at the place of `unit`, or None and what is wrong with it."""
    other = f"is not the record of {unit} that the manifest plans"
    try:
        record = parse_record(unit, data)
    except ValueError:
        return None, other
    if record.cache_id != manifest.cache_id:
        return None, f"belongs to cache {record.cache_id}, not to this one ({manifest.cache_id})"
    is_planned = record.name == unit
    if is_planned and isinstance(record, UnitRecord):
        spec, (start, stop) = manifest.spec, record.rows
        is_planned = (
            record.unit_idx < spec.num_units
            and record.rows == spec.unit_range(record.unit_idx)
            and all(start <= row < stop for row in record.bad_rows)
        )
    is_whole = is_planned and all(f.name in record.files for f in _files_of(record, manifest))
    return (record, "") if is_whole else (None, other)


def _compare_seal(
    found: VerifyReport,
    seal: dict[str, Any] | None,
    problem: str,
    records: Mapping[str, dict[str, Any] | None],
) -> None:
    """Compare the seal with the records; both say the same, or the seal is older."""
    sealed, sound = seal.get("commits") if seal else None, found.committed.by_name
    assert found.manifest is not None
    if not isinstance(sealed, dict):
        found.blame(SEAL, SEAL_NAME, problem or "is another record, not a seal")
        return
    if any(said["cache_id"] != found.manifest.cache_id for said in sealed.values()):
        found.blame(SEAL, SEAL_NAME, "belongs to another cache")
        return
    for unit, said in sealed.items():
        if unit not in records:
            problem = f"is missing, though {SEAL_NAME} repeats it"
            found.blame(unit, names.record_file(unit), problem)
        elif unit in sound and records[unit] != said:
            found.blame(SEAL, SEAL_NAME, f"vouches for another {unit} than its record")
    younger = [unit for unit in sound if unit not in sealed]
    if younger:
        found.notes.append(
            f"{SEAL_NAME} is older than {listed(younger)}, and readers see what it names; the next "
            "cache build or cache text command seals the cache again"
        )


def _vouch_for_index(found: VerifyReport, manifest: Manifest) -> None:
    layouts = [
        *manifest.spec.row_layouts().values(),
        *manifest.label_layouts().values(),
        *manifest.rejected_layouts().values(),
        *manifest.codec_layouts().values(),
    ]
    files = [file for layout in layouts for file in _array_files(INDEX, INDEX, layout)]
    for missing in sorted({file.name for file in files} - set(manifest.files)):
        found.blame(INDEX, MANIFEST_NAME, f"does not vouch for {missing}")
    arrays = {file.name: file for file in files if file.name in manifest.files}
    groups = {name: VouchedFile(unit=INDEX, name=name) for name in manifest.files}
    found.vouch((groups | arrays).values(), manifest.files)


def _files_of(record: Record, manifest: Manifest) -> list[VouchedFile]:
    """Return the files that a record has to vouch for."""
    if isinstance(record, UnitRecord):
        owner, group = names.view_name(record.view_idx), names.view_group(record.view_idx)
        layouts = manifest.spec.image_layouts(record.view_idx)
        shards = [record.unit_idx]
    else:
        owner, group = record.name, record.name
        layouts = record.spec.string_layouts() | record.spec.layouts(manifest.num_labels)
        shards = None
    files = [VouchedFile(unit=owner, name=names.metadata_file(group))]
    for layout in layouts.values():
        files += _array_files(owner, record.name, layout, shards)
    return files


def _array_files(
    owner: str, unit: str, layout: ArrayLayout, shards: Iterable[int] | None = None
) -> list[VouchedFile]:
    """Return the metadata of an array, which is `owner`'s, and its shards; None: all of them."""
    indexes = range(layout.num_shards) if shards is None else shards
    return [
        VouchedFile(unit=owner, name=names.metadata_file(layout.name), layout=layout),
        *(
            VouchedFile(unit=unit, name=layout.shard_name(idx), layout=layout, shard_idx=idx)
            for idx in indexes
        ),
    ]


def listed(some: list[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(some) - _MAX_NAMED:,} more" if len(some) > _MAX_NAMED else ""
    return ", ".join(some[:_MAX_NAMED]) + more
