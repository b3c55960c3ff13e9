"""`clipocr cache plan`: what a build would cost, before it is begun.

Rows, labels, prefixes and every array's size but the pixels' are exact: the sources are scanned,
the labels tokenised and the layouts weighed as the builder does. Pixels and all times come from a
timed sample on this machine. What codecs keep is measured on rows of the sources, with the
teacher's own weights where they are to be had. Nothing is kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...shared.cache import names
from ...shared.cache.codecs.codec import CODEC_EXAMPLES, Codec, codec_per_array, join_codecs
from ...shared.cache.codecs.codecs import Pixels, feature_codec, filter_pixels
from ...shared.cache.names import PIXELS
from ...shared.cache.records import REJECTION_REASONS
from ...shared.cache.shards import Array, ArrayLayout, weigh_array
from ...shared.cache.spec import CacheSpec, ImageArraySpec
from ...shared.cache.text_spec import TextSpec
from ...shared.data.word_lmdb import find_named_lmdbs
from ...shared.device import choose_device
from ...shared.errors import TeacherError, UsageError
from ..builder.calibrate import SAMPLE_ROWS, CodecSample
from ..builder.config import default_precision
from ..builder.contents import view_of
from ..builder.index import draft_manifest, index_arrays
from ..builder.scan import Scan, scan_sources
from ..builder.text import draft_text
from ..teacher.clip import Teacher, load_teacher
from .codec_curves import CodecCurve, measure_codecs
from .measure import make_views, measure_disk, measure_encoding, measure_images, measure_labels
from .options import PlanConfig

_NOTHING = np.empty(0)
"""Stands for features: they are not compressed, so that only their layouts count."""
_ENCODED_ROWS = 64
"""Rows of features that are encoded, to time codecs and disk; enough for the components of klt."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What was timed on this machine."""

    views_per_s: Mapping[str, float]
    """Augmentation -> views made by one core."""
    images_per_s: float
    """Images through the teacher."""
    encoded_per_s: Mapping[str, float]
    """Codec -> rows of all taps that it encodes where the teacher runs."""
    labels_per_s: float
    """Labels through the text encoder."""
    written_bytes_per_s: float
    """Bytes published: written, synced, read back."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one build would take."""

    codec: str
    num_views: int
    augment: str
    bytes_by_part: Mapping[str, int]
    """``pixels``, ``features``, ``text/char-36``, ..., ``index``."""
    seconds: float
    bottleneck: str
    """What the images wait for: ``teacher``, ``views`` or ``disk``."""

    @property
    def num_bytes(self) -> int:
        """All parts together."""
        return sum(self.bytes_by_part.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything to know before a build."""

    config: PlanConfig
    spec: CacheSpec
    """With the first of the codecs."""
    device: str
    rejected: Mapping[str, int]
    """Reason -> samples."""
    num_labels: int
    """Unique labels, case and punctuation intact."""
    texts: tuple[TextSpec, ...]
    rates: Rates
    costs: tuple[Cost, ...]
    """For each codec and number of views."""
    curves: tuple[CodecCurve, ...]
    """What codecs take and keep of each image array; none where they could not be judged."""
    assumptions: tuple[str, ...]

    @property
    def advised_codec(self) -> str | None:
        """What keeps the fidelity in the fewest bytes, as ``--codec`` takes it."""
        codecs = [curve.advised.codec for curve in self.curves]
        return join_codecs(codecs) if codecs else None


def plan_cache(config: PlanConfig) -> Plan:
    """Scan the sources, time a sample of the work, and add up."""
    config.require_image_taps()
    sources = find_named_lmdbs(config.data)
    device = choose_device(config.device)
    teacher, not_judged = _load_teacher(config, device)
    teacher.require_whole_patches()
    teacher.require_room(config.labels.max_label_length)
    started = time.perf_counter()
    scan = scan_sources(sources, config.labels)
    scan_s = time.perf_counter() - started
    drafts = [
        draft_text(scan.labels, charset, config.labels.max_label_length, teacher)
        for charset in config.charsets
    ]
    spec = _spec(config, teacher, scan)
    augments = sorted({config.augment_of(num_views) for num_views in config.views})
    samples = {augment: make_views(spec, scan, augment) for augment in augments}
    views = samples[augments[0]][0]
    specs = {spec.codec: spec for spec in _possible_specs(spec)}
    curves: tuple[CodecCurve, ...] = ()
    if not not_judged:
        curves, not_judged = _measure_codecs(config, spec, scan, teacher)
    if curves:
        advised = {curve.array: curve.advised.codec for curve in curves}
        specs.setdefault((smallest := _with_codecs(spec, advised)).codec, smallest)
    features = teacher.image_features(torch.from_numpy(views[:_ENCODED_ROWS]))
    image = spec.images[0]
    stored = feature_codec(image.codec).encode(features[image.name]).cpu().numpy()
    rates = Rates(
        views_per_s={augment: per_s for augment, (_, per_s) in samples.items()},
        images_per_s=measure_images(teacher, views, spec.chunk_rows),
        encoded_per_s={
            codec: measure_encoding(features, {image.name: image.codec for image in some.images})
            for codec, some in specs.items()
        },
        labels_per_s=measure_labels(teacher, drafts[0].trie, spec.chunk_rows),
        written_bytes_per_s=measure_disk(spec, stored, image.name, config.disk),
    )
    parts = {
        names.text_group(draft.spec.name): _weigh(
            draft.spec.layouts(len(scan.labels)), draft.arrays
        )
        for draft in drafts
    }
    parts["index"] = sum(
        weigh_array(layout, values)
        for layout, values in index_arrays(draft_manifest(spec, scan), scan)
    )
    fixed_s = scan_s + sum(draft.spec.num_strings for draft in drafts) / rates.labels_per_s
    costs = []
    for of_codec in specs.values():
        for num_views in config.views:
            some, _ = samples[config.augment_of(num_views)]
            cost = plan_views(config, rates, device.type, of_codec, some, num_views)
            tables = cost.bytes_by_part["index"]
            in_parts = {**cost.bytes_by_part, **parts, "index": tables + parts["index"]}
            costs.append(replace(cost, bytes_by_part=in_parts, seconds=cost.seconds + fixed_s))
    rejected = np.bincount(scan.rejected["reason"], minlength=len(REJECTION_REASONS)).tolist()
    return Plan(
        config=config,
        spec=spec,
        device=str(device),
        rejected={reason: n for reason, n in zip(REJECTION_REASONS, rejected, strict=True) if n},
        num_labels=len(scan.labels),
        texts=tuple(draft.spec for draft in drafts),
        rates=rates,
        costs=tuple(costs),
        curves=curves,
        assumptions=_assumptions(config, device.type, len(views), not_judged),
    )


def plan_views(
    config: PlanConfig,
    rates: Rates,
    device_type: str,
    spec: CacheSpec,
    views: Pixels,
    num_views: int,
) -> Cost:
    """Return what the views of a cache take, and the tables of its codecs.

    `views` are some of them, to tell what all pixels take. Shape: (B, H, W, 3).
    """
    augment = config.augment_of(num_views)
    layouts = spec.image_layouts(0)
    pixels = layouts.pop(PIXELS, None)
    pixel_bytes = weigh_array(pixels, filter_pixels(views)) if pixels else 0
    feature_bytes = _weigh(layouts, {})
    # Encoding is work of the teacher's device, between two of its batches.
    image_s = 1 / rates.images_per_s + 1 / rates.encoded_per_s[spec.codec]
    view_s = 1 / rates.views_per_s[augment]
    disk_s = (pixel_bytes + feature_bytes) / rates.written_bytes_per_s
    if device_type == "cpu":
        # Teacher and decoding share the cores, so the two add up.
        row_s = {"teacher": image_s + view_s / config.num_cores}
    else:
        row_s = {"teacher": image_s, "views": view_s / max(config.num_workers(device_type), 1)}
    times = {part: spec.num_rows * seconds for part, seconds in row_s.items()} | {"disk": disk_s}
    bottleneck = max(times, key=lambda part: times[part])
    table_bytes = _weigh(spec.codec_layouts({}), {})
    num_fitted = min(SAMPLE_ROWS, spec.num_rows) if table_bytes else 0
    return Cost(
        codec=spec.codec,
        num_views=num_views,
        augment=augment,
        bytes_by_part={
            "pixels": num_views * pixel_bytes,
            "features": num_views * feature_bytes,
            "index": table_bytes,
        },
        seconds=num_views * times[bottleneck] + num_fitted * (1 / rates.images_per_s + view_s),
        bottleneck=bottleneck,
    )


def _weigh(layouts: Mapping[str, ArrayLayout], arrays: Mapping[str, Array]) -> int:
    """Return the bytes of some arrays' files, without writing them."""
    return sum(weigh_array(layout, arrays.get(key, _NOTHING)) for key, layout in layouts.items())


def _measure_codecs(
    config: PlanConfig, spec: CacheSpec, scan: Scan, teacher: Teacher
) -> tuple[tuple[CodecCurve, ...], str]:
    """Return what codecs keep of each image array; without a row to judge by none, and why."""
    sample = CodecSample(spec, scan, teacher)
    if not all(map(len, sample.judged.values())):
        return (), "there is no good image among the first ninth of the sample"
    curves = tuple(
        measure_codecs(array, sample.judged[array], sample.bases[array], config.fidelity)
        for array in spec.image_names
    )
    return curves, ""


def _with_codecs(spec: CacheSpec, codecs: Mapping[str, Codec]) -> CacheSpec:
    return replace(
        spec, images=tuple(replace(image, codec=codecs[image.name]) for image in spec.images)
    )


def _spec(config: PlanConfig, teacher: Teacher, scan: Scan) -> CacheSpec:
    return CacheSpec(
        teacher=teacher.spec,
        view=view_of(config, "clean"),
        labels=config.labels,
        images=tuple(
            ImageArraySpec(name=name, num_tokens=num_tokens, width=width, codec=CODEC_EXAMPLES[0])
            for name, (num_tokens, width) in teacher.image_shapes.items()
        ),
        text_taps=config.text_taps,
        seed=0,
        sources=scan.sources,
        num_rows=scan.num_rows,
        pixels=config.pixels,
        unit_rows=config.unit_rows,
        chunk_rows=config.rows_per_chunk,
    )


def _possible_specs(spec: CacheSpec) -> Iterator[CacheSpec]:
    """Yield the spec with each codec that can hold tokens of this width; a toy's are too small."""
    for codec in CODEC_EXAMPLES:
        made = _with_codecs(spec, codec_per_array((codec,), spec.image_names))
        with contextlib.suppress(UsageError):
            made.image_layouts(0)
            yield made


def _load_teacher(config: PlanConfig, device: torch.device) -> tuple[Teacher, str]:
    """Return the teacher, or one that takes the same time and why it is not the one asked for."""

    def load(name: str) -> Teacher:
        return load_teacher(
            name,
            image_taps=config.image_taps,
            text_taps=config.text_taps,
            precision=config.precision or default_precision(device.type),
            device=device,
            view_px=config.view_size,
        )

    try:
        return load(config.teacher), ""
    except TeacherError as e:
        # Sizes and times do not depend on the weights, so there is still a plan.
        return load(f"{config.teacher.partition('/')[0]}/random:0"), str(e)


def _assumptions(
    config: PlanConfig, device_type: str, num_sampled: int, not_judged: str
) -> tuple[str, ...]:
    shared = (
        f"views are made on the teacher's {config.num_cores} cores"
        if device_type == "cpu"
        else f"views are made by {max(config.num_workers(device_type), 1)} worker processes"
    )
    lines = [
        "features, text and index are exact to the byte; pixels are scaled up from "
        f"{num_sampled:,} real views; zarr.json files and commit records are not counted",
        f"the teacher ran in batches of up to {config.rows_per_chunk}; {shared}",
        f"the disk is that of {config.disk or 'temporary files; --out names another'}",
        "one process; N of them, each with a device of its own, take about an N-th of the time",
    ]
    if not_judged:
        lines.append(f"codecs are not judged: {not_judged}")
    if config.augment == "clean" and max(config.views) > 1:
        lines.append("several views need --augment randaugment, and are planned with it")
    return tuple(lines)
