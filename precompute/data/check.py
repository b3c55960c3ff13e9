"""Read word LMDBs through and tell what a cache could not use, and why; and what is in them twice.

Shapes: N samples whose picture is sound.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from ...shared.ahead import map_on_processes
from ...shared.charset import Charset, LabelProblem
from ...shared.data.images import ImageProblemError, decode_image
from ...shared.data.word_lmdb import WordLmdb, find_lmdbs, image_key, label_key
from ...shared.errors import DataError
from ...shared.geometry import TALL_RATIO, looks_like_a_page
from ...shared.hashing import UInt64s, mix
from ...shared.progress import progress_bar
from .options import CheckOptions

_CHUNK_SAMPLES = 2048
_INLINE_SAMPLES = 4096
"""Up to so many samples one process is faster: starting more takes longer than decoding these."""


@dataclass(kw_only=True)
class LmdbReport:
    """What one LMDB, or a range of its samples, holds."""

    path: Path
    num_samples: int = 0
    """What ``num-samples`` says."""
    num_extra: int = 0
    """Keys beyond those of that many images and labels; nothing reads them."""
    problem: str | None = None
    """Why the LMDB as a whole cannot be used."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason) of each image and label that is missing or damaged."""
    label_problems: Counter[str] = field(default_factory=Counter)
    """Labels that a cache or the charset leaves out, by reason."""
    num_spaced: int = 0
    """Labels with whitespace."""
    num_losing: int = 0
    """Labels that lose letters when they are reduced to ASCII."""
    label_lengths: Counter[int] = field(default_factory=Counter)
    """Of the labels a cache keeps, in characters."""
    characters: Counter[str] = field(default_factory=Counter)
    """In the labels a cache keeps."""
    widths_px: array[int] = field(default_factory=lambda: array("I"))
    """Shape: (N,)."""
    heights_px: array[int] = field(default_factory=lambda: array("I"))
    """Shape: (N,)."""
    image_hashes: array[int] = field(default_factory=lambda: array("Q"))
    """Of the encoded pictures. Shape: (N,)."""
    label_hashes: array[int] = field(default_factory=lambda: array("Q"))
    """Of the labels as the charset has them; 0 where nothing is left. Shape: (N,)."""
    pages: list[tuple[str, str]] = field(default_factory=list)
    """(key, size) of each picture that looks like a page or a line."""

    def add(self, part: LmdbReport) -> None:
        """Take in the findings of one range of samples."""
        self.problem = self.problem or part.problem
        self.broken += part.broken
        self.label_problems += part.label_problems
        self.num_spaced += part.num_spaced
        self.num_losing += part.num_losing
        self.label_lengths += part.label_lengths
        self.characters += part.characters
        self.widths_px += part.widths_px
        self.heights_px += part.heights_px
        self.image_hashes += part.image_hashes
        self.label_hashes += part.label_hashes
        self.pages += part.pages

    def outside(self, charset: Charset) -> Counter[str]:
        """Count the characters that `charset` deletes."""
        return Counter({c: n for c, n in self.characters.items() if not charset.adapt(c)})

    def measured(self) -> dict[str, tuple[float, float, float]]:
        """Return least, median and largest of what pictures measure, of which there is one."""
        widths, heights = (np.asarray(some) for some in (self.widths_px, self.heights_px))
        of_all = {"width, pixels": widths, "height, pixels": heights}
        of_all["width / height"] = widths / heights
        return {
            name: (float(some.min()), float(np.median(some)), float(some.max()))
            for name, some in of_all.items()
        }

    @property
    def num_tall(self) -> int:
        """Pictures that ``--tall rotate`` turns."""
        return int((np.asarray(self.heights_px) >= TALL_RATIO * np.asarray(self.widths_px)).sum())

    @property
    def duplicates(self) -> tuple[int, int]:
        """How many pictures are those of another sample, to the byte, and how many of these have
        another label.
        """
        images, labels = _hashes(self.image_hashes), _hashes(self.label_hashes)
        num_images = len(np.unique(images))
        return len(images) - num_images, len(np.unique(mix(0, images, labels))) - num_images

    @property
    def is_sound(self) -> bool:
        """Whether the LMDB can be used and nothing in it is broken."""
        return self.problem is None and not self.broken


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What two roots have in common, such as training and test data."""

    first: Path
    second: Path
    num_images: int
    """Pictures of the second that are in the first, byte for byte."""
    num_second_images: int
    num_labels: int
    """Different labels that both have."""
    num_second_labels: int


def find_overlaps(roots: Sequence[Path], reports: Sequence[LmdbReport]) -> list[Overlap]:
    """Compare the words below each pair of roots; an LMDB is the first root's that it is below."""
    images: dict[Path, list[UInt64s]] = {}
    labels: dict[Path, list[UInt64s]] = {}
    for report in reports:
        root = next(root for root in roots if report.path.is_relative_to(root))
        images.setdefault(root, []).append(_hashes(report.image_hashes))
        labels.setdefault(root, []).append(_hashes(report.label_hashes))
    overlaps = []
    for first, second in combinations(images, 2):
        of_first, of_second = (np.unique(np.concatenate(labels[r])) for r in (first, second))
        second_images = np.concatenate(images[second])
        overlaps.append(
            Overlap(
                first=first,
                second=second,
                num_images=int(np.isin(second_images, np.concatenate(images[first])).sum()),
                num_second_images=len(second_images),
                num_labels=int(np.count_nonzero(np.intersect1d(of_first, of_second))),
                num_second_labels=int(np.count_nonzero(of_second)),
            )
        )
    return overlaps


def _hashes(values: array[int]) -> UInt64s:
    return np.frombuffer(values, np.uint64) if values else np.empty(0, np.uint64)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def check_lmdbs(roots: Sequence[Path], options: CheckOptions) -> list[LmdbReport]:
    """Decode every image and filter every label of every LMDB at or below `roots`."""
    paths = list(dict.fromkeys(path for root in roots for path in find_lmdbs(root)))
    reports = [LmdbReport(path=path) for path in paths]
    ranges: list[tuple[Path, range]] = []
    for report in reports:
        words = WordLmdb(report.path)
        try:
            report.num_samples = len(words)
        except DataError as e:
            report.problem = str(e)
            continue
        stop = report.num_samples + 1
        report.num_extra = max(0, words.num_keys - (2 * report.num_samples + 1))
        ranges += (
            (report.path, range(first, min(first + _CHUNK_SAMPLES, stop)))
            for first in range(1, stop, _CHUNK_SAMPLES)
        )
    total = sum(len(samples) for _, samples in ranges)
    num_processes = 1 if total <= _INLINE_SAMPLES else options.num_processes
    of_path = {report.path: report for report in reports}
    with progress_bar(total=total, unit="image", desc="check") as progress:
        parts = map_on_processes(partial(_check_range, options=options), ranges, num_processes)
        for (path, samples), part in zip(ranges, parts, strict=True):
            of_path[path].add(part)
            progress.update(len(samples))
    return reports


def _check_range(some: tuple[Path, range], options: CheckOptions) -> LmdbReport:
    path, samples = some
    report, words = LmdbReport(path=path), WordLmdb(path)
    try:
        for sample_idx in samples:
            encoded, label = words.image(sample_idx), words.label(sample_idx)
            adapted = ""
            is_sound = _check_image(image_key(sample_idx).decode(), encoded, report)
            if label is None:
                report.broken.append((label_key(sample_idx).decode(), "missing or not UTF-8"))
            else:
                adapted = _check_label(label, options, report)
            if is_sound:
                report.image_hashes.append(_hash(encoded or b""))
                report.label_hashes.append(_hash(adapted.encode()) if adapted else 0)
    except DataError as e:
        report.problem = str(e)
    return report


def _check_image(key: str, encoded: bytes | None, report: LmdbReport) -> bool:
    """Return whether a picture can be decoded."""
    try:
        if encoded is None:
            raise ImageProblemError("missing")
        width_px, height_px = decode_image(encoded).size
    except ImageProblemError as e:
        report.broken.append((key, str(e)))
        return False
    report.widths_px.append(width_px)
    report.heights_px.append(height_px)
    if looks_like_a_page(width_px, height_px):
        report.pages.append((key, f"{width_px}x{height_px}"))
    return True


def _check_label(raw_label: str, options: CheckOptions, report: LmdbReport) -> str:
    """Return a label as the charset has it; empty if nothing is left."""
    report.num_spaced += any(c.isspace() for c in raw_label)
    report.num_losing += options.labels.loses_letters(raw_label)
    label = options.labels.apply(raw_label)
    if isinstance(label, LabelProblem):
        report.label_problems[label.value] += 1
        return ""
    report.label_lengths[len(label)] += 1
    report.characters.update(label)
    adapted = options.charset.adapt(label)
    if not adapted:
        report.label_problems[f"nothing left in charset {options.charset.name}"] += 1
    return adapted
