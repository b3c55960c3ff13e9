"""The records of a cache: its manifest, and one for each unit, each text table and the weights.

A file is read only if a record states its size and checksums. All records are JSON with a checksum
of their own; see `json_record`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from . import names
from .json_record import as_json, canonical_json, from_json
from .shards import ArrayLayout
from .spec import CacheSpec
from .storage import FileRecord
from .strings import flat_layout, strings_layouts
from .text_spec import TextSpec

REJECTION_REASONS = (
    "missing image",
    "missing label",
    "empty label",
    "label too long",
    "label not UTF-8",
)
"""Meaning of ``rejected/reason``."""


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What makes a unit of a view part of the cache."""

    view_idx: int
    unit_idx: int
    cache_id: str
    files: Mapping[str, FileRecord]
    rows: tuple[int, int]
    """Rows [start, stop) of the unit."""
    keys_sha256: str
    """Digest of the unit's (source, LMDB index) pairs."""
    bad_rows: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Row -> reason, for images that could not become a view; readers never yield them."""
    fidelity: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Image array -> measure -> value: how well the codec kept this unit's own features."""

    @property
    def name(self) -> str:
        """Name of the unit, e.g. ``view0/unit-00003``."""
        return names.unit_name(self.view_idx, self.unit_idx)


@dataclass(frozen=True, kw_only=True)
class TextRecord:
    """What makes a text table part of the cache."""

    spec: TextSpec
    cache_id: str
    files: Mapping[str, FileRecord]

    @property
    def name(self) -> str:
        """Name of the table as a unit, e.g. ``text/char-36``."""
        return names.text_group(self.spec.name)


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """What makes the weights of the teacher part of the cache."""

    cache_id: str
    files: Mapping[str, FileRecord]
    """The one file."""
    header_bytes: int
    """Size of its header, behind which its tensors begin; see `tensor_file`."""

    @property
    def name(self) -> str:
        """Name of the weights as a unit."""
        return names.TEACHER


Record = UnitRecord | TextRecord | WeightsRecord


def parse_record(unit: str, data: Mapping[str, Any], cache_id: str) -> Record:
    """Return the record of a unit, of a text table or of the weights, from its JSON form.

    Raises:
        ValueError: the data is not the record of that unit in that cache.
    """
    is_text = unit.startswith(names.text_group(""))
    kind = WeightsRecord if unit == names.TEACHER else TextRecord if is_text else UnitRecord
    record: Record = from_json(kind, data)
    if (record.cache_id, record.name) != (cache_id, unit):
        raise ValueError(f"{record.name} of {record.cache_id}")
    return record


@dataclass
class Committed:
    """All records of a cache but its manifest, or those that were read of them."""

    units: dict[tuple[int, int], UnitRecord] = dataclasses.field(default_factory=dict)
    """By (view, unit)."""
    texts: dict[str, TextRecord] = dataclasses.field(default_factory=dict)
    """By the name of the table."""
    weights: WeightsRecord | None = None
    """None: the cache keeps none."""

    def add(self, record: Record) -> None:
        """Add a record, or put it in the place of the one of its name."""
        if isinstance(record, UnitRecord):
            self.units[record.view_idx, record.unit_idx] = record
        elif isinstance(record, TextRecord):
            self.texts[record.spec.name] = record
        else:
            self.weights = record

    def __iter__(self) -> Iterator[Record]:
        """Yield all records, sorted by name."""
        yield from () if self.weights is None else (self.weights,)
        yield from (self.texts[name] for name in sorted(self.texts))
        yield from (self.units[key] for key in sorted(self.units))

    @property
    def by_name(self) -> dict[str, Record]:
        """The records by the name of their unit."""
        return {record.name: record for record in self}

    def units_of(self, view_idx: int) -> list[int]:
        """Return the units of a view, in order."""
        return sorted(unit_idx for view, unit_idx in self.units if view == view_idx)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a cache is; written once, when its rows are decided, and never changed."""

    spec: CacheSpec
    num_labels: int
    """Unique labels of all rows."""
    num_label_bytes: int
    num_rejected: int
    """Samples that did not become rows."""
    built_with: Mapping[str, str]
    """Versions of what made it; for people, not compared."""
    files: Mapping[str, FileRecord]
    """The index: rows, labels, rejected samples, tables of codecs, the groups' metadata."""

    @cached_property
    def cache_id(self) -> str:
        """Digest of the spec and of the index; every record of a unit or table carries it."""
        identity = as_json({"spec": self.spec, "files": self.files})
        return hashlib.sha256(canonical_json(identity)).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"format": "clipocr-cache", "cache_id": self.cache_id, **as_json(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a manifest from its JSON form."""
        fields = {k: v for k, v in data.items() if k not in ("format", "cache_id")}
        manifest: Self = from_json(cls, fields)
        return manifest

    def label_layouts(self) -> dict[str, ArrayLayout]:
        """Return the arrays of the unique labels."""
        return strings_layouts("labels", self.num_labels, self.num_label_bytes)

    def codec_layouts(self) -> dict[str, ArrayLayout]:
        """Return the tables of the codecs that work by one, by image array."""
        return self.spec.codec_layouts(self.files)

    def index_layouts(self) -> list[ArrayLayout]:
        """Return all arrays of the index."""
        groups = (
            self.spec.row_layouts(),
            self.label_layouts(),
            self.rejected_layouts(),
            self.codec_layouts(),
        )
        return [layout for layouts in groups for layout in layouts.values()]

    def rejected_layouts(self) -> dict[str, ArrayLayout]:
        """Return the arrays of the samples that did not become rows."""
        return {
            key: flat_layout(names.array_path("rejected", key), self.num_rejected, dtype)
            for key, dtype in (("source", "uint16"), ("lmdb_index", "uint32"), ("reason", "uint8"))
        }
