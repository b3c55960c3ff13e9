"""What the tables of a cache must say to make sense: every number points at something.

Checksums prove that tables are as they were written; this proves that they were written right. Only
tables whose files are sound are looked at. Everything is read chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...shared.cache import names
from ...shared.cache.names import MANIFEST_NAME
from ...shared.cache.reader import FeatureCache
from ...shared.cache.records import (
    REJECTION_REASONS,
    Committed,
    Manifest,
    TextRecord,
    UnitRecord,
)
from ...shared.cache.shards import Array, ArrayLayout, ArrayReader
from ...shared.cache.storage import FileRecord, ReadStorage
from ..builder.scan import hash_keys
from .verify_records import INDEX, Fault


def check_tables(
    storage: ReadStorage,
    manifest: Manifest,
    committed: Committed,
    faults: Sequence[Fault],
) -> list[Fault]:
    """Check the index, and each text table, unless `faults` names a file of it."""
    damaged = {fault.unit for fault in faults}
    if INDEX in damaged:
        return []
    check = _Check(storage)
    check.index(manifest)
    check.rows(FeatureCache(storage, manifest, committed))
    for record in committed.texts.values():
        if record.name not in damaged:
            check.text(record, manifest)
    return check.faults


class _Check:
    def __init__(self, storage: ReadStorage) -> None:
        self._storage = storage
        self.faults: list[Fault] = []

    def index(self, manifest: Manifest) -> None:
        """Check labels and rejects."""
        utf8, offsets = manifest.label_layouts().values()
        self._offsets(INDEX, offsets, manifest.files, utf8.shape[0])
        rejected = manifest.rejected_layouts()
        num_sources, num_reasons = len(manifest.spec.sources), len(REJECTION_REASONS)
        self._range(INDEX, rejected["source"], manifest.files, 0, num_sources)
        self._range(INDEX, rejected["reason"], manifest.files, 0, num_reasons)

    def rows(self, cache: FeatureCache) -> None:
        """Check what each row is, and that every unit was made of just those rows."""
        manifest, spec = cache.manifest, cache.spec
        layouts = spec.row_layouts()
        self._range(INDEX, layouts["source"], manifest.files, 0, len(spec.sources))
        self._range(INDEX, layouts["label"], manifest.files, 0, manifest.num_labels)
        most = max(source.num_samples for source in spec.sources)
        self._range(INDEX, layouts["lmdb_index"], manifest.files, 1, most + 1)
        views: dict[int, list[UnitRecord]] = {}
        for record in cache.committed.units.values():
            views.setdefault(record.unit_idx, []).append(record)
        for unit_idx, units in sorted(views.items()):
            keys_sha256 = hash_keys(cache.rows(unit_idx))
            for record in units:
                if record.keys_sha256 != keys_sha256:
                    problem = "was made of other rows than the index has there"
                    file = names.record_file(record.name)
                    self.faults.append(Fault(unit=record.name, file=file, problem=problem))

    def text(self, record: TextRecord, manifest: Manifest) -> None:
        """Check one text table."""
        spec, unit, files = record.spec, record.name, record.files
        utf8, offsets = spec.string_layouts().values()
        self._offsets(unit, offsets, files, utf8.shape[0])
        layouts = spec.layouts(manifest.num_labels)
        self._range(unit, layouts["of_label"], files, -1, spec.num_strings)
        self._range(unit, layouts["nodes"], files, 0, spec.num_prefixes)

    def _range(
        self, unit: str, layout: ArrayLayout, files: Mapping[str, FileRecord], low: int, stop: int
    ) -> None:
        for chunk in self._chunks(layout, files):
            if chunk.size and not low <= int(chunk.min()) <= int(chunk.max()) < stop:
                problem = (
                    f"holds numbers from {chunk.min()} to {chunk.max()}, "
                    f"expected {low} to {stop - 1}"
                )
                self._blame(unit, layout, problem)
                return

    def _offsets(
        self, unit: str, layout: ArrayLayout, files: Mapping[str, FileRecord], num_bytes: int
    ) -> None:
        last = 0
        for chunk_idx, chunk in enumerate(self._chunks(layout, files)):
            values = chunk.astype("int64")
            starts_right = values[0] == 0 if chunk_idx == 0 else values[0] >= last
            if not starts_right or (values[1:] < values[:-1]).any():
                self._blame(unit, layout, "holds offsets that do not grow from 0")
                return
            last = int(values[-1])
        if last != num_bytes:
            self._blame(unit, layout, f"ends at byte {last:,} of {num_bytes:,}")

    def _chunks(self, layout: ArrayLayout, files: Mapping[str, FileRecord]) -> Iterator[Array]:
        reader = ArrayReader(self._storage, layout, files)
        for shard_idx in range(layout.num_shards):
            for chunk_idx in range(layout.num_chunks(shard_idx)):
                yield reader.chunk(shard_idx, chunk_idx)

    def _blame(self, unit: str, layout: ArrayLayout, problem: str) -> None:
        # The records agree with the files, so whoever wrote them was wrong.
        file = MANIFEST_NAME if unit == INDEX else layout.name
        self.faults.append(Fault(unit=unit, file=file, problem=f"{layout.name} {problem}"))
