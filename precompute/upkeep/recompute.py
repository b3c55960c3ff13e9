"""`clipocr cache verify --recompute`: rows drawn by chance, made again from their sources.

The view is made again from the LMDB and compared pixel by pixel. The teacher is run again on the
pixels of the cache, which are what it saw, so each comparison blames one thing only.

Shapes: B rows of a batch, T image tokens, D width.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...shared.cache.codecs.codecs import FeatureCodec, Pixels, unfilter_pixels
from ...shared.cache.names import PIXELS
from ...shared.cache.reader import FeatureCache
from ...shared.cache.records import UnitRecord
from ...shared.data.word_lmdb import WordLmdb, find_named_lmdbs
from ...shared.device import choose_device, describe_device
from ...shared.distribution import versions_with
from ...shared.errors import CacheMismatchError, CacheMissingError
from ...shared.progress import progress_bar
from ..builder.text import load_same_teacher
from ..builder.views import ChunkRows, ViewMaker
from .config import VerifyConfig

_OTHER_DEVICE = {"fp32": 2.0**-12, "fp16": 2.0**-7, "bf16": 2.0**-5}
"""By a teacher's precision: how far its features may be on another device, as a share of a token's
length. Estimates: some times what rounding each block's results leaves."""
_HALF_ULP = 2.0**-11
_SMALLEST = 2.0**-24
"""fp16 keeps 11 bits of mantissa, and multiples of this number near zero."""


@dataclass(kw_only=True)
class ArrayReport:
    """How far one image array is from the teacher, in the codec's terms: mostly standardised."""

    max_abs: float = 0.0
    """Largest absolute difference."""
    worst_share: float = 0.0
    """Largest difference as a share of what the codec promises; above 1 is a fault."""


@dataclass(frozen=True, kw_only=True)
class RecomputeReport:
    """What was drawn, and how far the cache is from it."""

    num_rows: int
    differing_views: tuple[str, ...]
    """Rows whose view came out differently, each with what differs."""
    arrays: Mapping[str, ArrayReport]
    versions: Mapping[str, tuple[str, str]]
    """Of the libraries that decide, and of ``device``: what built the cache, and what is here."""

    @property
    def is_sound(self) -> bool:
        """Whether every difference is within the promise, or explained by another decoder.

        Another version of Pillow may decode or stretch differently, one of simplejpeg decode. That
        a cache does not name its simplejpeg explains nothing: Pillow decoded, to the same pixels.
        """
        pairs = (self.versions[package] for package in ("pillow", "simplejpeg"))
        has_other_decoder = any(built not in (here, "unknown") for built, here in pairs)
        has_right_views = not self.differing_views or has_other_decoder
        return has_right_views and all(array.worst_share <= 1 for array in self.arrays.values())


_Batch = dict[int, tuple[UnitRecord, int]]
"""Place in the chunk -> a row that stands there, and its unit. Elsewhere in a batch the teacher
adds a row's numbers in another order, and the last bits may differ."""


def recompute_rows(config: VerifyConfig) -> RecomputeReport:
    """Draw `config.recompute` rows over all views, make them again, and compare.

    The promise holds for every value on the device and the version of PyTorch that built the cache.
    On others the teacher's last bits differ: there it holds for the length of a token's error, and
    as much is allowed on top as the teacher's precision may change. (Not for every value, because a
    code that falls to the other side of a rounding makes an error of the same length elsewhere.)
    """
    cache, device = FeatureCache.open(config.cache), choose_device(config.device)
    cache.require_images((), pixels=True)
    sources = _same_sources(cache, config.data)
    batches = _draw(cache, config.recompute or 0, config.seed)
    teacher = load_same_teacher(config.cache, cache.spec, config.teacher, device)
    maker = ViewMaker(sources, cache.spec.view, cache.spec.seed)
    arrays = {array: ArrayReport() for array in cache.spec.image_names}
    differing: list[str] = []
    num_rows = sum(map(len, batches))
    built_with = cache.manifest.built_with
    libraries = versions_with("pillow", "simplejpeg", "torch")
    versions = {
        name: (built_with.get(name, "unknown"), here)
        for name, here in (libraries | {"device": describe_device(device)}).items()
    }
    is_other = any(built != here for built, here in (versions["torch"], versions["device"]))
    allowed = _OTHER_DEVICE[cache.spec.teacher.precision] if is_other else 0.0
    with progress_bar(total=num_rows, desc="recompute", unit="row") as progress:
        for batch in batches:
            views: Pixels = unfilter_pixels(_stored(cache, PIXELS, batch)).numpy()
            for (unit, row), view in zip(batch.values(), views, strict=True):
                problem = _view_problem(cache, maker, unit, row, view)
                differing += [problem] if problem else []
            taught = teacher.chunk_features(views, cache.spec.chunk_rows, list(batch))
            for array, features in taught.items():
                codec, stored = cache.codec(array), _stored(cache, array, batch).to(device)
                _compare(arrays[array], features, stored, codec, allowed)
            progress.update(len(batch))
    return RecomputeReport(
        num_rows=num_rows,
        differing_views=tuple(differing),
        arrays=arrays,
        versions=versions,
    )


def _same_sources(cache: FeatureCache, roots: Sequence[Path]) -> dict[str, Path]:
    """Return where each source of the cache is below `roots`."""
    found = find_named_lmdbs(roots)
    have = {source.name: source.num_samples for source in cache.spec.sources}
    want = {name: len(WordLmdb(path)) for name, path in found.items()}
    if have != want:
        raise CacheMismatchError(
            f"{cache.storage} was built from (name: samples) {have}, but --data holds {want}; "
            "pass the roots it was built from"
        )
    return {name: found[name] for name in have}


def _draw(cache: FeatureCache, num_rows: int, seed: int) -> list[_Batch]:
    """Return up to `num_rows` good rows of the committed units, in as few batches as they fit."""
    units = list(cache.committed.units.values())
    if not units:
        raise CacheMissingError(f"{cache.storage} has no finished unit yet; finish its build first")
    sizes = [unit.rows[1] - unit.rows[0] for unit in units]
    num_good = sum(sizes) - sum(len(unit.bad_rows) for unit in units)
    rng, drawn = random.Random(seed), set[tuple[int, int]]()
    at_place = defaultdict(list)
    while len(drawn) < min(num_rows, num_good):
        unit = rng.choices(units, sizes)[0]
        row = rng.randrange(*unit.rows)
        if row not in unit.bad_rows and (unit.view_idx, row) not in drawn:
            drawn.add((unit.view_idx, row))
            at_place[(row - unit.rows[0]) % cache.spec.chunk_rows].append((unit, row))
    return [
        {place: rows[nth] for place, rows in at_place.items() if nth < len(rows)}
        for nth in range(max(map(len, at_place.values()), default=0))
    ]


def _stored(cache: FeatureCache, array: str, batch: _Batch) -> torch.Tensor:
    """Return what the cache says of a batch, as it is stored. Shape: (B, ...)."""
    rows = [
        cache.image_reader(unit.view_idx, array).rows(row, row + 1) for unit, row in batch.values()
    ]
    return torch.from_numpy(np.concatenate(rows))


def _view_problem(
    cache: FeatureCache, maker: ViewMaker, unit: UnitRecord, row: int, view: Pixels
) -> str:
    """Make a view again; return how it differs from the cache's, or nothing."""
    spec, columns = cache.spec, cache.rows(unit.unit_idx)
    at = slice(row - unit.rows[0], row - unit.rows[0] + 1)
    source, lmdb_index = columns["source"][at], columns["lmdb_index"][at]
    made = maker(ChunkRows(unit.view_idx, source, lmdb_index))
    name = f"view {unit.view_idx} of row {row} ({spec.sources[source[0]].name}, {lmdb_index[0]})"
    if made.bad:
        return f"{name}: now {made.bad[0]}"
    distance = np.abs(made.views[0].astype(np.int16) - view)
    num_pixels = int(distance.any(axis=2).sum())
    return f"{name}: {num_pixels} pixels, by up to {distance.max()} of 255" if num_pixels else ""


def _compare(
    report: ArrayReport,
    features: torch.Tensor,
    stored: torch.Tensor,
    codec: FeatureCodec,
    allowed: float,
) -> None:
    """Add a batch to the report of an array. Shape: (B, T, D).

    `allowed`, if not 0, is the share of a token's length by which its features may be others.
    """
    target = codec.target(features)
    decoded = codec.decode(stored).to(target.dtype)
    difference = (decoded - target).abs()
    # Half precision promises half a unit in the last place. Any other codec promises what it does
    # to these very features.
    promised = target.abs() * _HALF_ULP + _SMALLEST
    own = (codec.decode(codec.encode(features)).to(target.dtype) - target).abs()
    report.max_abs = max(report.max_abs, float(difference.amax()))
    most = torch.maximum(promised, own)
    if allowed:
        most = most.norm(dim=2) + allowed * target.norm(dim=2)
        difference = difference.norm(dim=2)
    share = float((difference / most).nan_to_num(torch.inf).amax())
    report.worst_share = max(report.worst_share, share)
