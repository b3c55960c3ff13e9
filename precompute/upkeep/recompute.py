"""`clipocr cache verify --recompute`: rows drawn by chance, made again from their sources.

The view is made again from the LMDB and compared pixel by pixel. The teacher is run again on the
pixels of the cache, which are what it saw, so each comparison blames one thing only.

Shapes: B rows of a chunk, T image tokens, D width.
"""

from __future__ import annotations

import bisect
import importlib.metadata
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ...shared.cache.codecs.codecs import FeatureCodec, Pixels, unfilter_pixels
from ...shared.cache.names import PIXELS
from ...shared.cache.reader import FeatureCache
from ...shared.data.word_lmdb import WordLmdb, find_named_lmdbs
from ...shared.errors import CacheMismatchError, CacheMissingError, UsageError
from ..builder.scan import sample_hashes
from ..builder.text import load_same_teacher
from ..builder.views import ChunkRows, ViewMaker

_HALF_ULP = 2.0**-11
_SMALLEST = 2.0**-24
"""fp16 keeps 11 bits of mantissa, and multiples of this number near zero."""


@dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """What `clipocr cache verify --recompute` was asked for."""

    cache: str | Path
    """Folder or address."""
    data: tuple[Path, ...]
    """Roots below which the LMDBs are that the cache was built from."""
    num_rows: int
    seed: int = 0
    """Decides which rows."""
    teacher: str | None = None
    """``MODEL/WEIGHTS``; None: as the cache names it, which a weights file cannot be."""
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise UsageError(f"recompute is {self.num_rows}, expected 1 row or more")
        if not self.data:
            raise UsageError("--recompute needs the LMDBs the cache was built from; pass --data")


@dataclass(kw_only=True)
class TapReport:
    """How far one tap of the cache is from the teacher."""

    max_abs: float = 0.0
    """Largest absolute difference, in the codec's terms: of standardised tokens but for fp16."""
    worst_share: float = 0.0
    """Largest difference as a share of what the codec promises; above 1 is a fault."""
    cosine_min: float = 1.0
    """Smallest cosine of a token, after the mean of each position was removed."""


@dataclass(frozen=True, kw_only=True)
class RecomputeReport:
    """What was drawn, and how far the cache is from it."""

    num_rows: int
    differing_views: tuple[str, ...]
    """Rows whose view came out differently, each with what differs.

    That is a fault of the cache or of the sources only if Pillow is the one that built it: another
    version may decode or stretch differently.
    """
    taps: Mapping[str, TapReport]
    versions: Mapping[str, tuple[str, str]]
    """``pillow`` and ``torch``: the version that built the cache, and this one."""

    @property
    def is_sound(self) -> bool:
        """Whether every difference is within the promise, or explained by another Pillow."""
        built, here = self.versions["pillow"]
        has_right_views = not self.differing_views or built != here
        return has_right_views and all(tap.worst_share <= 1 for tap in self.taps.values())


@dataclass(frozen=True, kw_only=True)
class _Row:
    view_idx: int
    unit_idx: int
    row: int


@dataclass(kw_only=True)
class _Batch:
    """Rows that stand where they stood in their chunks when the teacher saw them."""

    places: list[int] = field(default_factory=list)
    rows: list[_Row] = field(default_factory=list)


def recompute_rows(config: RecomputeConfig) -> RecomputeReport:
    """Draw rows over all views, make them again, and compare.

    The promise holds on the device and the version of PyTorch that built the cache; on others the
    last bits of the teacher differ, too.

    Raises:
        CacheError: there is no cache, or its records are damaged.
        CacheMismatchError: the sources, or the teacher's weights, are others than the cache's.
        TeacherError: CLIP weights cannot be had.
    """
    cache = FeatureCache.open(config.cache)
    sources = _same_sources(cache, config.data)
    rows = _draw(cache, config.num_rows, config.seed)
    teacher = load_same_teacher(config.cache, cache.spec, config.teacher, config.device)
    maker = ViewMaker(sources, cache.spec.view.augment, cache.spec.seed)
    taps = {array: TapReport() for array in cache.spec.image_names}
    differing: list[str] = []
    means: dict[str, torch.Tensor] = {}
    with tqdm(total=len(rows), desc="recompute", unit="row") as progress:
        for batch in _batches(cache, rows):
            views = np.concatenate([_views(cache, row) for row in batch.rows])
            differing += _differing_views(cache, maker, batch, views)
            # Each row where it stood in its chunk, as the builder ran it.
            taught = teacher.chunk_features(views, cache.spec.chunk_rows, batch.places)
            for key, features in taught.items():
                stored = _stored(cache, key, batch, config.device)
                # The first batch is the largest.
                codec = cache.codec(key)
                mean = means.setdefault(key, codec.target(features).mean(dim=0))
                _compare(taps[key], features, stored, mean, codec)
            progress.update(len(batch.rows))
    return RecomputeReport(
        num_rows=len(rows),
        differing_views=tuple(differing),
        taps=taps,
        versions={
            package: (
                cache.manifest.built_with.get(package, "unknown"),
                importlib.metadata.version(package),
            )
            for package in ("pillow", "torch")
        },
    )


def _same_sources(cache: FeatureCache, roots: Sequence[Path]) -> list[Path]:
    """Return where each source of the cache is below `roots`."""
    found = find_named_lmdbs(roots)
    have = {source.name: source.num_samples for source in cache.spec.sources}
    want = {name: len(WordLmdb(path)) for name, path in found.items()}
    if have != want:
        raise CacheMismatchError(
            f"{cache.storage} was built from {_listed(have)}, but --data holds {_listed(want)}; "
            "pass the roots it was built from"
        )
    return [found[source.name] for source in cache.spec.sources]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,} samples)" for name, count in sorted(counts.items()))


def _draw(cache: FeatureCache, num_rows: int, seed: int) -> list[_Row]:
    """Return up to `num_rows` good rows of the committed units."""
    units = [cache.unit(v, u) for v in range(cache.num_views) for u in cache.units(v)]
    if not units:
        raise CacheMissingError(f"{cache.storage} has no finished unit yet; finish its build first")
    num_bad = sum(len(unit.bad_rows) for unit in units)
    ends = np.cumsum([unit.rows[1] - unit.rows[0] for unit in units]).tolist()
    drawn = random.Random(seed).sample(range(ends[-1]), min(ends[-1], num_rows + num_bad))
    rows = []
    for number in drawn:
        at = bisect.bisect(ends, number)
        unit = units[at]
        row = unit.rows[1] - (ends[at] - number)
        if row not in unit.bad_rows:
            rows.append(_Row(view_idx=unit.view_idx, unit_idx=unit.unit_idx, row=row))
    return rows[:num_rows]


def _batches(cache: FeatureCache, rows: Sequence[_Row]) -> Iterator[_Batch]:
    """Spread rows over batches, each row at its own place in its chunk.

    There the teacher computes it from the same numbers in the same order as when the cache was
    built; elsewhere in a batch the last bits could differ.
    """
    batches: list[_Batch] = []
    num_at: dict[int, int] = defaultdict(int)
    for row in rows:
        start, _ = cache.spec.unit_range(row.unit_idx)
        place = (row.row - start) % cache.spec.chunk_rows
        if num_at[place] == len(batches):
            batches.append(_Batch())
        batch = batches[num_at[place]]
        num_at[place] += 1
        batch.places.append(place)
        batch.rows.append(row)
    yield from batches


def _views(cache: FeatureCache, row: _Row) -> Pixels:
    """Return the view of a row as the cache has it. Shape: (1, 32, 128, 3)."""
    stored = cache.image_reader(row.view_idx, PIXELS).rows(row.row, row.row + 1)
    views: Pixels = unfilter_pixels(torch.from_numpy(stored)).numpy()
    return views


def _differing_views(
    cache: FeatureCache,
    maker: ViewMaker,
    batch: _Batch,
    views: Pixels,
) -> list[str]:
    """Make each view again; return what differs."""
    names = [source.name for source in cache.spec.sources]
    differing = []
    for row, view in zip(batch.rows, views, strict=True):
        start, _ = cache.spec.unit_range(row.unit_idx)
        columns = cache.rows(row.unit_idx)
        at = slice(row.row - start, row.row - start + 1)
        source, lmdb_index = columns["source"][at], columns["lmdb_index"][at]
        hashes = sample_hashes(cache.spec.seed, names, source, lmdb_index)
        made = maker(
            ChunkRows(
                view_idx=row.view_idx,
                sources=source.tolist(),
                lmdb_indexes=lmdb_index.tolist(),
                hashes=hashes.tolist(),
            )
        )
        name = f"view {row.view_idx} of row {row.row} ({names[source[0]]}, {lmdb_index[0]})"
        distance = np.abs(made.views[0].astype(np.int16) - view)
        if made.bad:
            differing.append(f"{name}: now {made.bad[0]}")
        elif distance.any():
            num_pixels = int(distance.any(axis=2).sum())
            differing.append(f"{name}: {num_pixels} pixels, by up to {distance.max()} of 255")
    return differing


def _stored(cache: FeatureCache, key: str, batch: _Batch, device: torch.device) -> torch.Tensor:
    """Return what the cache says of a batch, as it is stored."""
    rows = [cache.image_reader(row.view_idx, key).rows(row.row, row.row + 1) for row in batch.rows]
    return torch.from_numpy(np.concatenate(rows)).to(device)


def _compare(
    report: TapReport,
    features: torch.Tensor,
    stored: torch.Tensor,
    mean: torch.Tensor,
    codec: FeatureCodec,
) -> None:
    """Add a batch to the report of a tap. Shape: (rows, T, D); mean (T, D)."""
    target = codec.target(features)
    decoded = codec.decode(stored).to(target.dtype)
    difference = (decoded - target).abs()
    # Half precision promises half a unit in the last place. Any other codec promises what it does
    # to these very features.
    promised = target.abs() * _HALF_ULP + _SMALLEST
    own = (codec.decode(codec.encode(features)).to(target.dtype) - target).abs()
    report.max_abs = max(report.max_abs, float(difference.amax()))
    share = float((difference / torch.maximum(promised, own)).nan_to_num(torch.inf).amax())
    report.worst_share = max(report.worst_share, share)
    cosine = torch.nn.functional.cosine_similarity(decoded - mean, target - mean, dim=2, eps=0)
    # A token that is the mean has no direction; it counts as kept.
    report.cosine_min = min(report.cosine_min, float(cosine.nan_to_num(1.0).amin()))
