"""`clipocr cache build`: from LMDBs to a sealed feature cache.

    scan ──► index ──► views ──► image arrays ──► codec ──► unit ──► seal
                ├────► unique labels ──► tokens ──► text arrays ──► text table ──┤
                └────► weights of the teacher, if the cache is to keep them ─────┘

Each step ends in a published record and is skipped when its record is there, so running the same
command again finishes what is missing. The text table comes last; until then parts of it are kept.
Shapes: N rows, B rows of a chunk.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ...shared.atomic import new_folder
from ...shared.cache import names
from ...shared.cache.codecs.codec import Codec
from ...shared.cache.json_record import as_json, require_equal
from ...shared.cache.reader import FeatureCache, publish_seal, read_committed, read_manifest
from ...shared.cache.records import Manifest
from ...shared.cache.spec import CacheSpec, ImageArraySpec, SourceSpec, TeacherSpec
from ...shared.cache.storage import LocalStorage
from ...shared.device import choose_device
from ...shared.errors import DataError
from ..teacher.clip import load_teacher
from .calibrate import CodecSample
from .config import BuildConfig, LabelsConfig, PoolConfig, default_precision
from .contents import Contents, natural_images, pictures_of_words, words_alone
from .index import ensure_index, is_index_whole
from .text import build_text_table, draft_table, find_text, require_same_weights, same_teacher_name
from .units import UnitBuilder
from .weights import write_weights

_POOL_UNIT_ROWS = 512
_POOL_CHUNK_ROWS = 32
"""Of natural images: 100 MB and 6.5 MB of ViT-B/16's 197 tokens."""


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build did."""

    cache: FeatureCache
    num_rows_built: int
    """Each counted once a view; 0 when nothing was missing."""
    num_bad_rows: int
    """Bad images among all rows of the cache."""
    made_text: bool
    """Whether a text table was missing."""
    is_complete: bool
    """Whether every unit of every requested view is there; other processes may still build some."""
    image_seconds: float
    """Time spent on units."""


class _Missing(NamedTuple):
    """What a cache lacks of what was asked for."""

    lacks_index: bool
    lacks_text: bool
    lacks_weights: bool
    units: list[tuple[int, int]]
    """(view, unit) pairs, view by view."""


def build_cache(
    config: BuildConfig, contents: Contents | None = None, teacher: TeacherSpec | None = None
) -> BuildSummary:
    """Build a cache, finish a half-built one, or find that nothing is missing.

    Args:
        config: What is asked for.
        contents: What it is of; None: the LMDBs that the config names.
        teacher: Whose weights the teacher must have; None: any.
    """
    contents = contents or pictures_of_words(config)
    storage = LocalStorage(config.out)
    manifest = read_manifest(storage)
    if manifest is None:
        names.require_free(config.out)
    else:
        want = _wanted_so_far(config, contents, manifest.spec)
        _require_equal_spec(manifest.spec, want, config.out, contents)
    num_rows_built, image_seconds = 0, 0.0
    lacked = None if manifest is None else _look(config, contents, storage, manifest)[1]
    if manifest is None or (lacked and any(lacked)):
        # Before anything takes time, because a folder may not be writable.
        with new_folder(config.out):
            manifest, num_rows_built, image_seconds = _make_missing(
                config, contents, storage, manifest, teacher
            )
    # Read anew: another process may have built other units of this cache.
    cache, missing = _look(config, contents, storage, manifest)
    bad = [cache.committed.units[0, unit_idx].bad_rows for unit_idx in cache.units()]
    if not any(missing):
        _require_good_rows(cache, bad, contents)
        cache = FeatureCache(storage, manifest, publish_seal(storage, manifest))
    return BuildSummary(
        cache=cache,
        num_rows_built=num_rows_built,
        made_text=lacked is None or lacked.lacks_text,
        num_bad_rows=sum(map(len, bad)),
        is_complete=not missing.units,
        image_seconds=image_seconds,
    )


def build_labels(config: LabelsConfig) -> BuildSummary:
    """Build a cache of words without pictures, or finish it."""
    return build_cache(config.build, words_alone(config))


def build_pool(config: PoolConfig) -> BuildSummary:
    """Build the pool of natural images of a cache, or finish it, by the teacher of that cache."""
    spec = FeatureCache.open(config.cache).spec
    teacher = spec.teacher
    build = BuildConfig(
        data=(config.images,),
        out=config.cache / names.POOL_FOLDER,
        teacher=same_teacher_name(config.cache, teacher, config.teacher),
        image_taps=(names.FINAL,),
        pixels=False,
        text_taps=spec.text_taps,
        codec=(Codec.parse("fp16"),),
        activation=teacher.activation,
        precision=teacher.precision,
        unit_rows=_POOL_UNIT_ROWS,
        chunk_rows=_POOL_CHUNK_ROWS,
        seed=config.seed,
        device=config.device,
        workers=config.workers,
        process=config.process,
    )
    return build_cache(build, natural_images(config, teacher), teacher)


def _look(
    config: BuildConfig, contents: Contents, storage: LocalStorage, manifest: Manifest
) -> tuple[FeatureCache, _Missing]:
    """Return the cache as it is by now, and what it lacks, whoever is to make it."""
    committed = read_committed(storage, manifest, through_seal=False)
    # What trains on `final` goes on with CLIP itself. A pool has it too, but no text to train on.
    keeps_weights = names.FINAL in manifest.spec.image_names and bool(contents.tokenizer)
    missing = _Missing(
        lacks_index=not is_index_whole(storage, manifest),
        lacks_text=bool(contents.tokenizer)
        and find_text(committed, config.charset, contents.tokenizer, contents.template) is None,
        lacks_weights=keeps_weights and committed.weights is None,
        units=[
            (view_idx, unit_idx)
            for view_idx in range(config.views)
            for unit_idx in range(manifest.spec.num_units)
            if (view_idx, unit_idx) not in committed.units
        ],
    )
    return FeatureCache(storage, manifest, committed), missing


def _require_good_rows(
    cache: FeatureCache, bad: Sequence[Mapping[int, str]], contents: Contents
) -> None:
    """Refuse to seal a cache of which no picture could be decoded."""
    reasons = Counter(reason for of_unit in bad for reason in of_unit.values())
    if reasons.total() == cache.spec.num_rows:
        listed = ", ".join(f"{reason}: {n:,}" for reason, n in reasons.most_common())
        places = ", ".join(map(str, contents.places))
        look = "look at them with: clipocr data check. " if cache.spec.is_of_lmdbs else ""
        raise DataError(
            f"none of the {cache.spec.num_rows:,} pictures in {places} can be decoded ({listed}); "
            f"{look}{cache.storage} is of no use and may be removed"
        )


def _make_missing(
    config: BuildConfig,
    contents: Contents,
    storage: LocalStorage,
    manifest: Manifest | None,
    same_as: TeacherSpec | None,
) -> tuple[Manifest, int, float]:
    """Make what is missing and this process's share of the units.

    Returns:
        The manifest, how many rows were built, and the seconds spent on them.
    """
    device = choose_device(config.device, config.process)
    begun_with = manifest.spec.teacher.precision if manifest else None
    teacher = load_teacher(
        config.teacher,
        image_taps=config.image_taps,
        text_taps=config.text_taps,
        precision=config.precision or begun_with or default_precision(device.type),
        device=device,
        activation=config.activation,
        view_px=contents.view.view_px,
    )
    if manifest is None and config.image_taps:
        teacher.require_whole_patches()
    if same_as is not None:
        require_same_weights(config.out, same_as, teacher.spec)
    teacher.require_room(config.labels.max_label_length)
    scan = contents.scan()
    spec = _spec(config, contents, teacher.spec, teacher.image_shapes, scan.sources, scan.num_rows)
    spec.image_layouts(0)  # Refuses what cannot be stored before anything is computed.
    if manifest is not None:
        # What is made now must be made from exactly what the rest was made from.
        _require_equal_spec(manifest.spec, spec, config.out, contents)
    storage.sweep()
    manifest = ensure_index(storage, manifest, spec, scan, CodecSample(spec, scan, teacher))
    cache, missing = _look(config, contents, storage, manifest)
    draft = None
    if missing.lacks_text and config.process.rank == 0:
        # Before the units, because a charset may leave nothing of the labels.
        draft = draft_table(cache, config.charset, teacher, contents.tokenizer, contents.template)
    if missing.lacks_weights and config.process.rank == 0:
        cache.publish(write_weights(cache, config.teacher))
    started = time.perf_counter()
    builder = UnitBuilder(cache, teacher, contents.pictures, config.num_workers(device.type))
    # Split all units among processes, not the missing ones: the missing ones change while others
    # build, so two processes would compute different splits.
    share = [
        (view_idx, unit_idx)
        for view_idx, unit_idx in missing.units
        if config.process.takes(view_idx * spec.num_units + unit_idx)
    ]
    num_rows_built = builder.build(share) if spec.image_layouts(0) else builder.commit(share)
    image_seconds = time.perf_counter() - started
    # `clipocr cache text` may have made it meanwhile.
    if draft is not None and _look(config, contents, storage, manifest)[1].lacks_text:
        build_text_table(cache, draft, teacher)
    return manifest, num_rows_built, image_seconds


def _spec(
    config: BuildConfig,
    contents: Contents,
    teacher: TeacherSpec,
    image_shapes: Mapping[str, tuple[int, int]],
    sources: tuple[SourceSpec, ...],
    num_rows: int,
) -> CacheSpec:
    """Return the spec of the cache that was asked for."""
    return CacheSpec(
        teacher=teacher,
        view=contents.view,
        labels=config.labels,
        images=tuple(
            ImageArraySpec(name=name, num_tokens=num_tokens, width=width, codec=config.codecs[name])
            for name, (num_tokens, width) in image_shapes.items()
        ),
        text_taps=config.text_taps,
        seed=config.seed,
        sources=sources,
        num_rows=num_rows,
        pixels=config.pixels,
        unit_rows=config.unit_rows,
        chunk_rows=config.rows_per_chunk,
    )


def _wanted_so_far(config: BuildConfig, contents: Contents, have: CacheSpec) -> CacheSpec:
    """Return what was asked for, as far as neither teacher nor labels have to be read for it.

    The rest is as in `have`.
    """
    model, _, weights = config.teacher.partition("/")
    if have.teacher.weights == f"file:{Path(weights).name}":
        weights = have.teacher.weights
    teacher = replace(
        have.teacher,
        model=model,
        weights=weights,
        activation=config.activation or have.teacher.activation,
        precision=config.precision or have.teacher.precision,
    )
    shape = have.images[0].row_shape if have.images else (0, 0)
    shapes = {image.name: image.row_shape for image in have.images}
    image_shapes = {name: shapes.get(name, shape) for name in names.image_names(config.image_taps)}
    digests = {source.name: source.digest for source in have.sources}
    found = tuple(
        replace(source, digest=source.digest or digests.get(source.name, "new"))
        for source in contents.found()
    )
    return _spec(config, contents, teacher, image_shapes, found, have.num_rows)


def _require_equal_spec(have: CacheSpec, want: CacheSpec, out: Path, contents: Contents) -> None:
    """Refuse to go on with a cache of something else, naming the options that would."""
    options = zip(_options_of(have), _options_of(want), strict=True)
    differing = [text for (text, value), (_, wanted) in options if value != wanted]
    going_on = (
        f"Go on with that one by: clipocr {contents.command} --out {out} "
        f"{' '.join(differing) or '(with the clipocr that began it)'} ...; "
        if contents.command == "cache build"
        else "Go on with that one by the command that began it; "
    )
    require_equal(
        as_json(have, complete=True),
        as_json(want, complete=True),
        f"{out} holds another cache",
        going_on + contents.advice,
    )


def _options_of(spec: CacheSpec) -> list[tuple[str, object]]:
    """Return each option that decides a spec, as it is written, and what it decides."""
    teacher, labels = spec.teacher, spec.labels
    image_taps, text_taps = (",".join(map(str, t)) for t in (spec.image_taps, spec.text_taps))
    # Of a weights file the cache knows the name, not the place.
    teacher_name = teacher.name.replace("/file:", "/PATH/")
    unicode = "--keep-unicode" if labels.keep_unicode else "(without --keep-unicode)"
    pixels = "--pixels" if spec.pixels else "--no-pixels"
    return [
        ("--data ROOT (with the sources as they were)", (spec.sources, spec.num_rows)),
        (f"--teacher {teacher_name}", (teacher.name, teacher.weights_sha256)),
        (f"--activation {teacher.activation}", teacher.activation),
        (f"--precision {teacher.precision}", teacher.precision),
        (f"--image-taps {image_taps}", image_taps),
        (f"--text-taps {text_taps}", text_taps),
        (f"--augment {spec.view.augment}", spec.view.augment),
        (f"--tall {spec.view.tall}", spec.view.tall),
        (f"--view-size {spec.view.view_px}", spec.view.view_px),
        (pixels, pixels),
        (f"--max-label-length {labels.max_label_length}", labels.max_label_length),
        (unicode, unicode),
        (f"--codec {spec.codec}", spec.codec),
        (f"--seed {spec.seed}", spec.seed),
        (f"--unit-rows {spec.unit_rows}", spec.unit_rows),
        (f"--chunk-rows {spec.chunk_rows}", spec.chunk_rows),
    ]
