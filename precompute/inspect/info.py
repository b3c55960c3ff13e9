"""`clipocr cache info`: what a cache is, from what, what it weighs, and what was left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...shared.cache import names
from ...shared.cache.json_record import as_json
from ...shared.cache.reader import FeatureCache
from ...shared.cache.words import WordReader
from ...shared.data.word_lmdb import image_key, label_key
from ...shared.terminal import byte_size, counted


@dataclass(frozen=True, kw_only=True)
class CacheDescription:
    """What there is to say of a cache, ready to print."""

    facts: list[tuple[str, str]]
    bytes_by_part: dict[str, int]
    """``image/view0/pixels``, ``text/char-36``, ``index``, ... -> bytes of its committed files."""
    num_rows: int
    num_rows_built: int
    """Rows of committed units of the first view."""
    num_views: int


def describe_cache(path: str | Path) -> CacheDescription:
    """Describe the cache at `path` from its records alone."""
    cache = FeatureCache.open(path)
    spec, teacher = cache.spec, cache.spec.teacher
    units = [cache.unit(0, unit_idx) for unit_idx in cache.units()]
    bad = Counter(reason for unit in units for reason in unit.bad_rows.values())
    rejected = Counter(reason for _, _, reason in cache.rejected())
    # A unit of bad images only has none.
    fidelity = [unit.fidelity for unit in units if unit.fidelity]
    random = " (RANDOM weights: for trying the pipeline only)" if teacher.is_random else ""
    unicode = "Unicode kept" if spec.labels.keep_unicode else "NFKD to ASCII"
    facts = [
        ("cache id", cache.manifest.cache_id),
        *_state(cache),
        ("teacher", teacher.name + random),
        ("weights", f"sha256 {teacher.weights_sha256[:16]}..., {teacher.activation}"),
        ("precision", teacher.precision),
        *(
            (f"image {a.name}", f"{a.num_tokens} tokens of {a.width}, codec {a.codec}")
            for a in spec.images
        ),
        ("views", f"{cache.num_views}, {spec.view}{'' if spec.pixels else '; no pixels stored'}"),
        ("labels", f"{unicode}, at most {spec.labels.max_label_length} characters"),
        ("seed", str(spec.seed)),
        *(
            ("source", f"{source.name}: {source.num_samples:,} samples, {source.digest[:16]}...")
            for source in spec.sources
        ),
        ("rows", f"{spec.num_rows:,} in {counted(spec.num_units, 'unit')} of each view"),
        ("bad images", _counts(bad)),
        ("rejected samples", _counts(rejected)),
        *(
            (
                "text table",
                f"{text.name}: {text.num_strings:,} labels of {len(text.characters)} characters, "
                f"{text.num_prefixes:,} prefixes; "
                + ", ".join(f"{a.name} ({a.width})" for a in text.arrays),
            )
            for text in cache.text_specs()
        ),
        *(
            ("teacher's weights", byte_size(file.num_bytes))
            for file in (cache.committed.weights.files.values() if cache.committed.weights else ())
        ),
        *(
            (
                f"fidelity, {array}",
                f"centred cosine {min(f[array]['cosine_p50'] for f in fidelity):.6f} (median), "
                f"{min(f[array]['cosine_p01'] for f in fidelity):.6f} (1st percentile); "
                f"Gram error {max(f[array]['gram_l1'] for f in fidelity):.6f}",
            )
            for array in (fidelity[0] if fidelity else ())
        ),
        ("built with", ", ".join(f"{k} {v}" for k, v in cache.manifest.built_with.items())),
    ]
    return CacheDescription(
        facts=facts,
        bytes_by_part=_bytes_by_part(cache),
        num_rows=spec.num_rows,
        num_rows_built=sum(unit.rows[1] - unit.rows[0] for unit in units),
        num_views=cache.num_views,
    )


def _state(cache: FeatureCache) -> list[tuple[str, str]]:
    """Return whether all is there, and if not, how much of what."""
    spec, committed = cache.spec, cache.committed
    views = {
        view_idx: cache.units(view_idx)
        for view_idx in sorted({view_idx for view_idx, _ in committed.units} or {0})
    }
    is_whole = all(len(done) == spec.num_units for done in views.values())
    if cache.is_sealed and is_whole:
        return [("state", "sealed")]
    by_view = [
        (
            f"view {view_idx}",
            f"{len(done):,} of {counted(spec.num_units, 'unit')}, "
            f"{sum(map(spec.unit_size, done)):,} of {counted(spec.num_rows, 'row')}",
        )
        for view_idx, done in views.items()
    ]
    if cache.is_sealed:
        return [("state", "a copied part of the whole cache, which has the same id"), *by_view]
    facts = [("state", "half built; the command that began it goes on with it"), *by_view]
    if spec.view.resize == names.CENTER_CROP:
        return facts  # A pool has nothing else.
    if not committed.texts:
        files = cache.storage.names(names.text_parts(""))
        computed = f" ({counted(len(files), 'part')} of it computed)" if files else ""
        facts.append(("text table", f"missing{computed}"))
    if names.FINAL in spec.image_names and committed.weights is None:
        facts.append(("teacher's weights", "missing"))
    return facts


def cache_figures(path: str | Path) -> dict[str, Any]:
    """Return what `describe_cache` tells people as JSON knows it, numbers as they are."""
    cache = FeatureCache.open(path)
    units = cache.committed.units
    built = {view_idx: cache.units(view_idx) for view_idx in range(cache.num_views)}
    return {
        "cache_id": cache.manifest.cache_id,
        "is_sealed": cache.is_sealed,
        "spec": as_json(cache.spec, complete=True),
        "num_views": cache.num_views,
        "num_units_built": {view_idx: len(done) for view_idx, done in built.items()},
        "bad_images": dict(Counter(r for unit in units.values() for r in unit.bad_rows.values())),
        "rejected_samples": dict(Counter(reason for _, _, reason in cache.rejected())),
        "text_tables": [as_json(text, complete=True) for text in cache.text_specs()],
        "fidelity": [
            {"view": view_idx, "unit": unit_idx, **as_json(unit.fidelity)}
            for (view_idx, unit_idx), unit in sorted(units.items())
        ],
        "bytes_by_part": _bytes_by_part(cache),
        "built_with": dict(cache.manifest.built_with),
    }


def list_bad_samples(path: str | Path) -> list[tuple[str, str, str]]:
    """Return (source, name, reason) of bad rows of committed units and of rejected samples.

    They are sorted by source and index. The name is the LMDB key at fault; of a pool the file of
    the image, of a list of words the line.
    """
    cache = FeatureCache.open(path)
    reader = WordReader(cache, images=())
    # Views share their images, so a row that is bad in one is bad in all.
    reasons: dict[int, str] = {}
    for unit in cache.committed.units.values():
        reasons |= unit.bad_rows
    found = []
    for row_idx, reason in sorted(reasons.items()):
        row = reader.row(row_idx)
        name = image_key(row.lmdb_index).decode() if cache.spec.is_of_lmdbs else row.label
        found.append((row.source, row.lmdb_index, name, reason))
    for source, index, reason in cache.rejected():
        key = label_key if "label" in reason else image_key
        name = key(index).decode() if cache.spec.is_of_lmdbs else f"line {index}"
        found.append((source, index, name, reason))
    return [(source, name, reason) for source, _, name, reason in sorted(found)]


def _counts(counter: Counter[str]) -> str:
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in counter.most_common())
    return f"{counter.total():,}" + (f" ({reasons})" if reasons else "")


def _bytes_by_part(cache: FeatureCache) -> dict[str, int]:
    parts: Counter[str] = Counter()
    for file in cache.manifest.files.values():
        parts["index"] += file.num_bytes
    for record in cache.committed:
        for name, file in record.files.items():
            part = "metadata" if names.is_metadata(name) else names.part_of(name)
            parts[part] += file.num_bytes
    return dict(sorted(parts.items()))
