"""The records of a cache as `clipocr cache verify` judges them, and the files they vouch for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...shared.cache.reader import unit_name
from ...shared.cache.records import decode_record, encode_record
from ...shared.cache.schema import (
    COMMITS_FOLDER,
    FORMAT_VERSION,
    MANIFEST_NAME,
    SEAL_NAME,
    Commit,
    Manifest,
    strings_layouts,
)
from ...shared.cache.shards import ArrayLayout
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
    commits: dict[str, Commit] = field(default_factory=dict)
    """Sound ones, by unit."""
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
    names = storage.names(COMMITS_FOLDER)
    manifest, problem = _read_manifest(storage, is_cache=bool(names) or seal is not None)
    found = Records(manifest=manifest, is_sealed=seal_problem != "is missing")
    if manifest is None:
        found.faults.append(Fault(unit=INDEX, file=MANIFEST_NAME, problem=problem))
        return found
    owners, foreign = set(), []
    for file in names:
        unit = file.removeprefix(f"{COMMITS_FOLDER}/").removesuffix(".json")
        data, problem = _read_record(storage, file)
        owner = data.get("cache_id", manifest.cache_id) if data else manifest.cache_id
        commit, problem = _commit(data, manifest, unit) if data else (None, problem)
        if commit is not None:
            found.commits[unit] = commit
        elif owner != manifest.cache_id:
            owners.add(owner)
            foreign.append(Fault(unit=unit, file=file, problem=problem))
        else:
            found.faults.append(Fault(unit=unit, file=file, problem=problem))
    if len(owners) == 1 and not found.commits:
        # No record is of this manifest's cache, and all are of one other: it is the stranger.
        problem = f"is of cache {manifest.cache_id}, but every record is of {owners.pop()}"
        found.faults.append(Fault(unit=INDEX, file=MANIFEST_NAME, problem=problem))
        found.manifest = None
        return found
    found.faults += foreign
    if found.is_sealed:
        _check_seal(found, manifest, seal, seal_problem, set(names))
    elif _is_complete(found.commits, manifest):
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


def _commit(data: dict[str, Any], manifest: Manifest, unit: str) -> tuple[Commit | None, str]:
    """Return the commit of a record at the place of `unit`, or None and what is wrong with it."""
    try:
        commit = Commit.from_json(data)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None, "is another record, not that of a unit or a text table"
    if commit.cache_id != manifest.cache_id:
        return None, f"belongs to cache {commit.cache_id}, not to this one ({manifest.cache_id})"
    if commit.name != unit:
        return None, f"is the record of {commit.name}"
    spec = manifest.spec
    if commit.text is not None:
        is_planned = unit == f"text/{commit.text.name}"
    else:
        view_idx, unit_idx = _numbers(unit)
        start, stop = commit.rows
        is_planned = (
            0 <= unit_idx < spec.num_units
            and unit == unit_name(view_idx, unit_idx)
            and commit.rows == spec.unit_range(unit_idx)
            and all(start <= row < stop for row in commit.bad_rows)
        )
    if not is_planned:
        return None, "does not fit what the manifest plans"
    missing = {file.name for file in _files_of(commit, manifest)} - set(commit.files)
    return (None, f"does not vouch for {min(missing)}") if missing else (commit, "")


def _numbers(unit: str) -> tuple[int, int]:
    """Return (view, unit) of a unit's name, or -1s."""
    view, _, number = unit.removeprefix("view").partition("/unit-")
    return (int(view), int(number)) if view.isdecimal() and number.isdecimal() else (-1, -1)


def _check_seal(
    found: Records,
    manifest: Manifest,
    data: dict[str, Any] | None,
    problem: str,
    record_names: set[str],
) -> None:
    """Compare the seal with the records; both repeat the same, or the seal is older."""

    def blame(problem: str) -> None:
        found.faults.append(Fault(unit=SEAL, file=SEAL_NAME, problem=problem))

    records = data.get("commits") if data else None
    if not isinstance(records, dict):
        blame(problem or "is another record, not a seal")
        return
    for unit, stored in records.items():
        commit, problem = _commit(stored, manifest, unit)
        record_name = f"{COMMITS_FOLDER}/{unit}.json"
        if commit is None:
            blame(f"its record of {unit} {problem}")
        elif record_name not in record_names:
            problem = f"is missing, though {SEAL_NAME} repeats it"
            found.faults.append(Fault(unit=unit, file=record_name, problem=problem))
        elif found.commits.get(unit, commit) != commit:
            blame(f"vouches for another {unit} than its record")
    younger = sorted(set(found.commits) - set(records))
    if younger:
        found.notes.append(
            f"{SEAL_NAME} is older than {named(younger)}, and readers see what it names; the next "
            "cache build or cache text command seals the cache again"
        )


def _is_complete(commits: Mapping[str, Commit], manifest: Manifest) -> bool:
    units = [unit for unit, commit in commits.items() if commit.text is None]
    num_views = len({_numbers(unit)[0] for unit in units})
    return len(commits) > len(units) == num_views * manifest.spec.num_units > 0


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
    for commit in found.commits.values():
        for file in _files_of(commit, manifest):
            known = files.setdefault(file.name, file)
            if file.record not in (known.record, *known.younger):
                younger = (*known.younger, file.record)
                files[file.name] = replace(known, younger=younger)
    return files


def _files_of(commit: Commit, manifest: Manifest) -> Iterator[VouchedFile]:
    """Yield the files that a commit has to vouch for, with what it says of them."""
    text = commit.text
    if text is None:
        view_idx, unit_idx = _numbers(commit.name)
        owner = f"view{view_idx}"
        yield _vouched(owner, f"image/{owner}/zarr.json", commit.files, None, None)
        for layout in manifest.spec.image_layouts(view_idx).values():
            yield from _array_files(owner, commit.name, layout, [unit_idx], commit.files)
        return
    yield _vouched(commit.name, f"{commit.name}/zarr.json", commit.files, None, None)
    strings = strings_layouts(commit.name, text.num_strings, text.num_string_bytes)
    for layout in (strings | text.layouts(manifest.spec.teacher, manifest.num_labels)).values():
        shards = range(layout.num_shards)
        yield from _array_files(commit.name, commit.name, layout, shards, commit.files)


def _array_files(
    metadata_unit: str,
    unit: str,
    layout: ArrayLayout,
    shards: Sequence[int],
    files: Mapping[str, FileRecord],
) -> Iterator[VouchedFile]:
    yield _vouched(metadata_unit, f"{layout.name}/zarr.json", files, layout, None)
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


def named(names: Sequence[str]) -> str:
    """Return the first few of `names`, and how many more there are."""
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
