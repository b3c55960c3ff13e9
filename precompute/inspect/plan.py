"""`clipocr cache plan`: what a build would cost, before it is begun.

Rows, labels, prefixes and every array's size but the pixels' are exact: the sources are scanned,
the labels tokenised and the layouts weighed as the builder does. Pixels and all times come from a
timed sample on this machine. Which codecs ``auto:F`` would take is measured as the builder does it,
if that is asked for. Nothing is kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from ...shared.cache.codecs.choice import asked_fidelity, auto_codec
from ...shared.cache.codecs.codecs import (
    FEATURE_CODEC_NAMES,
    feature_codec,
    join_tap_codecs,
)
from ...shared.cache.schema import REJECTION_REASONS, CacheSpec, ViewSpec
from ...shared.charset import Charset, LabelRules
from ...shared.data.word_lmdb import find_named_lmdbs
from ...shared.errors import UsageError
from ..builder.calibrate import CALIBRATION_ROWS, Calibration
from ..builder.scan import Scan, scan_sources
from ..builder.text import TextDraft, draft_text
from ..teacher.clip import Teacher, load_teacher
from .measure import (
    SampleViews,
    make_views,
    measure_disk,
    measure_encoding,
    measure_images,
    measure_labels,
)
from .weigh import weigh_index, weigh_tables, weigh_text, weigh_view

_ENCODED_ROWS = 64
"""Rows of features that are encoded, to time codecs and disk; enough for the components of klt."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What `clipocr cache plan` was asked for; fields as in `BuildConfig`."""

    data: tuple[Path, ...]
    out: Path | None = None
    """Where the cache would be, to measure that disk; None: the disk of temporary files."""
    teacher: str = "ViT-B-16/openai"
    """Its weights are loaded for `fidelity` only: random ones of the same shape take the same
    time."""
    fidelity: float | None = None
    """Plan for codec ``auto:F`` too; as slow as a few thousand images are."""
    device: torch.device = torch.device("cpu")
    precision: str | None = None
    image_taps: tuple[int, ...] = (3, 6, 9)
    text_taps: tuple[int, ...] = (3, 6, 9)
    charsets: tuple[Charset, ...]
    labels: LabelRules = LabelRules()
    augment: str = "clean"
    """Of the plan for one view; several are always ``randaugment``."""
    views: tuple[int, ...] = (1, 2, 5)
    """The numbers of views to plan for."""
    seed: int = 0
    unit_rows: int = 16384
    chunk_rows: int = 256
    num_workers: int = 0
    num_cores: int = 1
    """Cores that a teacher on the CPU shares with the decoding of images."""

    def __post_init__(self) -> None:
        if not self.views or min(self.views) < 1:
            raise UsageError(f"views are {self.views}, expected numbers from 1 on")
        if self.chunk_rows < 1 or self.unit_rows < 1 or self.unit_rows % self.chunk_rows:
            raise UsageError(
                f"unit rows {self.unit_rows} is not a multiple of chunk rows {self.chunk_rows}"
            )

    def augment_of(self, num_views: int) -> str:
        """Return how that many views would be made; several clean ones would all be the same."""
        return self.augment if num_views == 1 else "randaugment"

    @property
    def disk(self) -> Path | None:
        """An existing folder on the disk that the cache would be on."""
        if self.out is None:
            return None
        out = self.out.absolute()
        return next(folder for folder in (out, *out.parents) if folder.is_dir())


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How long the scan took, and what this machine does in a second."""

    scan_s: float
    views_per_s: Mapping[str, float]
    """Augmentation -> views made by one core."""
    images_per_s: float
    """Images through the teacher."""
    encoded_per_s: Mapping[str, float]
    """Codec -> rows of all taps that it encodes where the teacher runs."""
    choice_s: float
    """Time it took to compare codecs for ``auto:F``; 0 if that was not asked for."""
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
class TextPlan:
    """One charset's text table."""

    name: str
    num_strings: int
    """U: unique labels that are left of it."""
    num_nodes: int
    """M: token prefixes, the pads of the official loss included."""
    num_left_out: int
    """Unique labels of which nothing is left."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything to know before a build."""

    teacher: str
    device: str
    precision: str
    sources: Mapping[str, int]
    """Name -> its ``num-samples``."""
    num_rows: int
    rejected: Mapping[str, int]
    """Reason -> samples."""
    num_labels: int
    """Unique labels, case and punctuation intact."""
    texts: tuple[TextPlan, ...]
    num_sampled: int
    """Rows whose views were made to tell size and time."""
    sampled_bad: Mapping[str, int]
    """Reason -> bad images among them."""
    rates: Rates
    costs: tuple[Cost, ...]
    """For each codec and number of views."""
    chosen_codec: str | None
    """What ``auto:F`` would take for each tap, if that was asked for."""
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; each cost with its total."""
        costs = [asdict(cost) | {"num_bytes": cost.num_bytes} for cost in self.costs]
        return asdict(self) | {"costs": costs}


def plan_cache(config: PlanConfig) -> Plan:
    """Scan the sources, time a sample of the work, and add up.

    Raises:
        DataError: a source cannot be used, or a charset leaves nothing of any label.
        UsageError: the teacher or a tap is not possible.
    """
    sources = find_named_lmdbs(config.data)
    teacher = _load_teacher(config)
    teacher.require_room(config.labels.max_label_length)
    started = time.perf_counter()
    scan = scan_sources(sources, config.labels)
    scan_s = time.perf_counter() - started
    drafts = [
        draft_text(
            scan.labels,
            charset,
            max_label_length=config.labels.max_label_length,
            context_length=teacher.context_length,
        )
        for charset in config.charsets
    ]
    spec = _spec(config, teacher, scan)
    order = scan.order(spec.seed)
    augments = {config.augment_of(num_views) for num_views in config.views}
    samples = {a: make_views(spec, scan, order, a) for a in sorted(augments)}
    first_sample = next(iter(samples.values()))
    codecs = {name: name for name in _possible_codecs(spec)}
    chosen, choice_s = None, 0.0
    if config.fidelity is not None:
        chosen, choice_s = _choose(spec, scan, teacher, config.fidelity)
        codecs[auto_codec(config.fidelity)] = chosen
    rates = _measure(config, spec, scan_s, choice_s, teacher, samples, codecs, drafts[0])
    parts = {
        f"text/{draft.spec.name}": weigh_text(spec, draft, len(scan.labels)) for draft in drafts
    }
    num_strings = sum(draft.spec.num_strings for draft in drafts)
    measured = _Measured(
        rates=rates,
        samples=samples,
        parts=parts | {"index": weigh_index(spec, scan)},
        fixed_s=scan_s + num_strings / rates.labels_per_s,
    )
    costs = [
        _cost(config, measured, name, replace(spec, codec=codec), num_views)
        for name, codec in codecs.items()
        for num_views in config.views
    ]
    return Plan(
        teacher=config.teacher,
        device=str(config.device),
        precision=teacher.spec.precision,
        sources={source.name: source.num_samples for source in scan.sources},
        num_rows=spec.num_rows,
        rejected=_count_rejected(scan),
        num_labels=len(scan.labels),
        texts=tuple(
            TextPlan(
                name=draft.spec.name,
                num_strings=draft.spec.num_strings,
                num_nodes=draft.spec.num_nodes,
                num_left_out=int((draft.arrays["of_label"] < 0).sum()),
            )
            for draft in drafts
        ),
        num_sampled=len(first_sample.views),
        sampled_bad=first_sample.bad,
        rates=rates,
        costs=tuple(costs),
        chosen_codec=chosen,
        assumptions=_assumptions(config, len(first_sample.views), chosen),
    )


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What costs are added up from."""

    rates: Rates
    samples: Mapping[str, SampleViews]
    """By augmentation."""
    parts: Mapping[str, int]
    """Bytes of what views and codecs do not change."""
    fixed_s: float
    """Time that neither changes."""


def _cost(
    config: PlanConfig, measured: _Measured, name: str, spec: CacheSpec, num_views: int
) -> Cost:
    """Return what a build takes with codec `name`; `spec` has the codecs that this makes."""
    rates, augment = measured.rates, config.augment_of(num_views)
    of_view = weigh_view(spec, measured.samples[augment].views)
    view_s, bottleneck = _image_seconds(
        config, rates, name, augment, sum(of_view.values()), spec.num_rows
    )
    table_bytes = weigh_tables(spec)
    is_auto = asked_fidelity(name) is not None
    sample_s = rates.choice_s if is_auto else 0.0
    if is_auto or table_bytes:
        sample_rows = min(CALIBRATION_ROWS, spec.num_rows)
        sample_s += sample_rows * (1 / rates.images_per_s + 1 / rates.views_per_s[augment])
    bytes_by_part = {key: num_views * n for key, n in of_view.items()} | dict(measured.parts)
    bytes_by_part["index"] += table_bytes
    return Cost(
        codec=name,
        num_views=num_views,
        augment=augment,
        bytes_by_part=bytes_by_part,
        seconds=measured.fixed_s + sample_s + num_views * view_s,
        bottleneck=bottleneck,
    )


def _choose(spec: CacheSpec, scan: Scan, teacher: Teacher, fidelity: float) -> tuple[str, float]:
    """Return what ``auto:F`` takes for each tap, and the time that comparing codecs took."""
    calibration = Calibration(spec, scan, teacher)
    calibration.run()
    started = time.perf_counter()
    choices = [calibration.choose(tap, fidelity) for tap in spec.teacher.image_taps]
    seconds = time.perf_counter() - started
    return join_tap_codecs(choice.codec for choice in choices), seconds


def _spec(config: PlanConfig, teacher: Teacher, scan: Scan) -> CacheSpec:
    return CacheSpec(
        teacher=teacher.spec,
        view=ViewSpec(),
        labels=config.labels,
        codec=FEATURE_CODEC_NAMES[0],
        seed=config.seed,
        sources=scan.sources,
        num_rows=len(scan.row_source),
        unit_rows=config.unit_rows,
        chunk_rows=config.chunk_rows,
    )


def _possible_codecs(spec: CacheSpec) -> list[str]:
    """Return the codecs that can hold tokens of this width; a toy's are too small for some."""
    names = []
    for name in FEATURE_CODEC_NAMES:
        with contextlib.suppress(UsageError):
            replace(spec, codec=name).image_layouts(0)
            names.append(name)
    return names


def _load_teacher(config: PlanConfig) -> Teacher:
    """Return the teacher if its features are to be judged, else one that takes the same time."""
    precision = config.precision or ("fp16" if config.device.type == "cuda" else "fp32")
    if config.fidelity is not None:
        return load_teacher(
            config.teacher,
            image_taps=config.image_taps,
            text_taps=config.text_taps,
            precision=precision,
            device=config.device,
        )
    model, separator, weights = config.teacher.partition("/")
    if not separator or not weights:
        raise UsageError(f"teacher {config.teacher!r} is not MODEL/WEIGHTS")
    tags = open_clip.list_pretrained_tags_by_model(model)
    # QuickGELU is three operations where GELU is one.
    is_quick = weights in tags and open_clip.get_pretrained_cfg(model, weights).get("quick_gelu")
    return load_teacher(
        f"{model}/random:0",
        image_taps=config.image_taps,
        text_taps=config.text_taps,
        precision=precision,
        device=config.device,
        activation="quickgelu" if is_quick else None,
    )


def _count_rejected(scan: Scan) -> dict[str, int]:
    counts = np.bincount(scan.rejected_reason, minlength=len(REJECTION_REASONS)).tolist()
    return {reason: n for reason, n in zip(REJECTION_REASONS, counts, strict=True) if n}


def _measure(
    config: PlanConfig,
    spec: CacheSpec,
    scan_s: float,
    choice_s: float,
    teacher: Teacher,
    samples: Mapping[str, SampleViews],
    codecs: Mapping[str, str],
    draft: TextDraft,
) -> Rates:
    views = next(iter(samples.values())).views
    features = teacher.image_taps(torch.from_numpy(views[:_ENCODED_ROWS]))
    tap, of_tap = next(iter(features.items()))
    stored = feature_codec(spec.codec).encode(of_tap).cpu().numpy()
    return Rates(
        scan_s=scan_s,
        choice_s=choice_s,
        views_per_s={augment: sample.views_per_s for augment, sample in samples.items()},
        images_per_s=measure_images(teacher, views, spec.chunk_rows),
        encoded_per_s={
            name: measure_encoding(features, replace(spec, codec=codec).tap_codecs)
            for name, codec in codecs.items()
        },
        labels_per_s=measure_labels(teacher, draft.trie, spec.chunk_rows),
        written_bytes_per_s=measure_disk(spec, stored, f"block{tap}", config.disk),
    )


def _image_seconds(
    config: PlanConfig,
    rates: Rates,
    codec: str,
    augment: str,
    view_bytes: int,
    num_rows: int,
) -> tuple[float, str]:
    """Return the time that all rows of one view take, and what they wait for."""
    # Encoding is work of the teacher's device, between two of its batches.
    teacher_s = num_rows * (1 / rates.images_per_s + 1 / rates.encoded_per_s[codec])
    disk_s = view_bytes / rates.written_bytes_per_s
    views_s = num_rows / rates.views_per_s[augment]
    if config.device.type == "cpu":
        # They share the cores, so the two add up.
        times = {"teacher": teacher_s + views_s / config.num_cores, "disk": disk_s}
    else:
        times = {
            "teacher": teacher_s,
            "views": views_s / max(config.num_workers, 1),
            "disk": disk_s,
        }
    bottleneck = max(times, key=lambda part: times[part])
    return times[bottleneck], bottleneck


def _assumptions(config: PlanConfig, num_sampled: int, chosen: str | None) -> tuple[str, ...]:
    shared = (
        f"views are made on the teacher's {config.num_cores} cores"
        if config.device.type == "cpu"
        else f"views are made by {max(config.num_workers, 1)} worker processes"
    )
    lines = [
        "features, text and index are exact to the byte; pixels are scaled up from "
        f"{num_sampled:,} real views; zarr.json files and commit records are not counted",
        ("the teacher ran" if chosen else "the teacher ran with random weights of the same shapes,")
        + f" in batches of up to {config.chunk_rows}; {shared}",
        "codec auto may take less: --fidelity 0.99 measures what, with the teacher's own weights"
        if chosen is None
        else f"codec auto at fidelity {config.fidelity} takes {chosen}, here; other devices may "
        "differ by a byte",
        f"the disk is that of {config.disk or 'temporary files; --out names another'}",
        "one process; N of them, each with a device of its own, take about an N-th of the time",
    ]
    if config.augment == "clean" and max(config.views) > 1:
        lines.append("several views need --augment randaugment, and are planned with it")
    return tuple(lines)
