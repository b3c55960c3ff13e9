"""Read word LMDBs through and tell what a cache could not use, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ...shared.ahead import map_on_processes
from ...shared.charset import Charset, LabelProblem
from ...shared.data.images import ImageProblemError, decode_image
from ...shared.data.word_lmdb import WordLmdb, find_lmdbs, image_key, label_key
from ...shared.errors import DataError
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

    def add(self, part: LmdbReport) -> None:
        """Take in the findings of one range of samples."""
        self.problem = self.problem or part.problem
        self.broken += part.broken
        self.label_problems += part.label_problems
        self.num_spaced += part.num_spaced
        self.num_losing += part.num_losing
        self.label_lengths += part.label_lengths
        self.characters += part.characters

    def outside(self, charset: Charset) -> Counter[str]:
        """Count the characters that `charset` deletes."""
        return Counter({c: n for c, n in self.characters.items() if not charset.adapt(c)})

    @property
    def is_sound(self) -> bool:
        """Whether the LMDB can be used and nothing in it is broken."""
        return self.problem is None and not self.broken


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
            try:
                if encoded is None:
                    raise ImageProblemError("missing")
                decode_image(encoded)
            except ImageProblemError as e:
                report.broken.append((image_key(sample_idx).decode(), str(e)))
            if label is None:
                report.broken.append((label_key(sample_idx).decode(), "missing or not UTF-8"))
            else:
                _check_label(label, options, report)
    except DataError as e:
        report.problem = str(e)
    return report


def _check_label(raw_label: str, options: CheckOptions, report: LmdbReport) -> None:
    report.num_spaced += any(c.isspace() for c in raw_label)
    report.num_losing += options.labels.loses_letters(raw_label)
    label = options.labels.apply(raw_label)
    if isinstance(label, LabelProblem):
        report.label_problems[label.value] += 1
        return
    report.label_lengths[len(label)] += 1
    report.characters.update(label)
    if not options.charset.adapt(label):
        report.label_problems[f"nothing left in charset {options.charset.name}"] += 1
