"""Tables of a codec from a sample of the cache's own rows, the same for every builder of it.

The sample is the first rows of the cache in view 0; rows were permuted, so it is a fair one.
Whoever comes first publishes a table, by a link that does not replace what is there: processes
that begin at once, even on devices whose last bits differ, all go on with the same table, and none
waits for another. The folder's name is a digest of all that decides the sample, so what a killed
build of something else has left is not taken for this one's.

Shapes: T image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..shared.arrays import Array, ArrayLayout, write_array
from ..shared.codecs import klt_record_bytes
from ..shared.errors import MEND, CacheCorruptError
from ..shared.klt import fit_basis
from ..shared.quantize import standardise
from ..shared.schema import CacheSpec
from ..shared.storage import FileRecord, LocalStorage, scratch_folder
from .scan import Scan, sample_hashes
from .teacher import Teacher
from .views import ChunkRows, ViewMaker

CALIBRATION_ROWS = 2048

TableMaker = Callable[[], Mapping[str, Array]]
"""Returns the table of each tap, by ``block{i}``."""


def make_tables(
    spec: CacheSpec, scan: Scan, sources: tuple[Path, ...], teacher: Teacher
) -> dict[str, Array]:
    """Run the teacher over the sample and fit the table of each tap, by ``block{i}``."""
    num_tokens, width = spec.teacher.num_image_tokens, spec.teacher.image_width
    names = [source.name for source in spec.sources]
    hashes = sample_hashes(spec.seed, names, scan.row_source, scan.row_lmdb_index)
    sample = np.argsort(hashes, kind="stable")[:CALIBRATION_ROWS]
    maker = ViewMaker(sources, spec.view.augment, spec.seed)
    count = 0
    keys = [f"block{tap}" for tap in spec.teacher.image_taps]
    sums = {key: np.zeros((num_tokens, width)) for key in keys}
    products = {key: np.zeros((width, width)) for key in keys}
    with tqdm(total=len(sample), desc="calibration", unit="image") as progress:
        for start in range(0, len(sample), spec.chunk_rows):
            rows = sample[start : start + spec.chunk_rows]
            made = maker(
                ChunkRows(
                    view_idx=0,
                    sources=scan.row_source[rows].tolist(),
                    lmdb_indexes=scan.row_lmdb_index[rows].tolist(),
                    hashes=hashes[rows].tolist(),
                )
            )
            # A full chunk, as the builder always runs.
            views = np.zeros((spec.chunk_rows, *made.views.shape[1:]), np.uint8)
            views[: len(rows)] = made.views
            good = [idx for idx in range(len(rows)) if idx not in made.bad]
            count += len(good)
            for tap, features in teacher.image_taps(torch.from_numpy(views)).items():
                tokens = standardise(features[good])
                sums[f"block{tap}"] += tokens.sum(dim=0).cpu().numpy()
                flat = tokens.flatten(0, 1)
                products[f"block{tap}"] += (flat.T @ flat).cpu().numpy()
            progress.update(len(rows))
    record_bytes = klt_record_bytes(spec.codec)
    return {key: fit_basis(count, sums[key], products[key]).table(record_bytes) for key in keys}


def publish_tables(
    storage: LocalStorage, layouts: Mapping[str, ArrayLayout], make: TableMaker
) -> dict[str, FileRecord]:
    """Publish the tables that are not there yet, and return the records of those that then are.

    Raises:
        CacheCorruptError: what was published is no table; the storage is failing.
    """
    with scratch_folder(storage) as scratch:
        held = {key: _held(storage, layout, scratch) for key, layout in layouts.items()}
        missing = [key for key, table in held.items() if table is None]
        made = make() if missing else {}
        for key in missing:
            layout = layouts[key]
            name = layout.shard_name(0)
            if storage.exists(name) and _held(storage, layout, scratch) is None:
                storage.remove(name)  # Damaged.
            write_array(scratch, layout, made[key])
            storage.keep_first(name, scratch.read(name))
            held[key] = _held(storage, layout, scratch)
        records: dict[str, FileRecord] = {}
        for key, layout in layouts.items():
            whole = held[key]
            if whole is None:
                raise CacheCorruptError(f"{storage}/{layout.shard_name(0)} is no table. {MEND}")
            records |= write_array(scratch, layout, whole)
    return records


def _held(storage: LocalStorage, layout: ArrayLayout, scratch: LocalStorage) -> Array | None:
    """Return the table that is there, if it is whole: if writing its numbers gives its bytes."""
    name = layout.shard_name(0)
    if not storage.exists(name):
        return None
    stored = storage.read(name)
    num_bytes = 4 * int(np.prod(layout.shape))
    if len(stored) < num_bytes:
        return None
    table = np.frombuffer(stored[:num_bytes], "<f4").reshape(layout.shape)
    write_array(scratch, layout, table)
    return table if scratch.read(name) == stored else None
