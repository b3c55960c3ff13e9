"""`clipocr eval`: word accuracy on LMDBs, by PARSeq's protocol.

Ground truth and prediction both pass through the test charset; the student decodes all its
positions, never just as many as the label has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ...shared.ahead import map_ahead
from ...shared.charset import Charset, LabelProblem, LabelRules
from ...shared.device import allow_fast_products, autocast
from ...shared.errors import DataError
from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, VIEW_SHAPE, normalize
from ...shared.images import ImageProblemError, decode_image, stretch
from ...shared.words import WordLmdb, find_named_lmdbs
from ..replacing import replacing
from ..student import Student
from .metrics import WordCounts

_DECODE_THREADS = 2
_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a student read in one picture."""

    text: str
    character_confidence: tuple[float, ...]
    """Probability of each character, then of EOS."""

    @property
    def confidence(self) -> float:
        """Product of the character probabilities, EOS included."""
        return float(np.prod(self.character_confidence))


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """One test set's counts."""

    name: str
    counts: WordCounts
    num_unlabelled: int
    """Samples left out: the test charset leaves nothing of their label, or it is too long."""
    num_broken: int
    """Samples whose image cannot be decoded; they count as wrong."""


def read_views(student: Student, views: torch.Tensor, precision: str) -> list[Reading]:
    """Read a batch of views. Shape: (B, 32, 128, 3), uint8, on the student's device."""
    with autocast(views.device, precision):
        logits = student.decode(normalize(views, STUDENT_MEAN, STUDENT_STD))
    texts, confidences = student.tokenizer.decode(logits.float().softmax(dim=-1))
    return [
        Reading(text=text, character_confidence=tuple(confidence.tolist()))
        for text, confidence in zip(texts, confidences, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """One LMDB, with the labels that count under a test charset."""

    __test__ = False  # For pytest, to which the name looks like a test.

    name: str
    lmdb: WordLmdb
    charset: Charset
    labels: list[tuple[int, str]]
    """(LMDB index, adapted label) of each sample that counts."""


def open_test_sets(roots: Sequence[Path], charset: Charset, max_label_length: int) -> list[TestSet]:
    """Open every LMDB at or below `roots`, in name order, and filter its labels.

    Raises:
        DataError: no LMDB, one that cannot be used, or one without a label under `charset`.
    """
    return [
        TestSet(
            name=name,
            lmdb=(lmdb := WordLmdb(path)),
            charset=charset,
            labels=_test_labels(lmdb, charset, max_label_length),
        )
        for name, path in find_named_lmdbs(roots).items()
    ]


def share_of(test_set: TestSet, rank: int, world_size: int) -> TestSet:
    """Return the part of a set that one of several processes reads."""
    return replace(test_set, labels=test_set.labels[rank::world_size])


def evaluate(
    student: Student,
    test_sets: Sequence[TestSet],
    *,
    precision: str = "fp32",
    batch_size: int = 512,
) -> list[SetResult]:
    """Read every picture of every set, with bars on stderr.

    Args:
        student: In eval mode; the pictures go to its device.
        test_sets: Of `open_test_sets`.
        precision: Autocast type.
        batch_size: Pictures read at once.
    """
    allow_fast_products(precision)
    return [_evaluate_set(student, some, precision, batch_size) for some in test_sets]


def total(results: Sequence[SetResult]) -> WordCounts:
    """Return all sets' counts together: every figure weighted by samples."""
    return sum((result.counts for result in results), WordCounts())


def results_as_table(results: Sequence[SetResult]) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of the results, the sample-weighted total last."""
    headers = ["set", "samples", "accuracy", "1-NED", "confidence", "label length"]
    named = [(result.name, result.counts) for result in results]
    named.append(("total, weighted by samples", total(results)))
    rows = [
        [
            name,
            f"{counts.num_samples:,}",
            f"{counts.accuracy:.2f}",
            f"{counts.one_minus_ned:.2f}",
            f"{counts.confidence:.2f}",
            f"{counts.label_length:.2f}",
        ]
        for name, counts in named
    ]
    return headers, rows


def results_as_json(
    results: Sequence[SetResult], *, checkpoint: Path, charset_name: str
) -> dict[str, object]:
    """Return the results with all their figures, percentages as on the screen but not rounded."""

    def figures(counts: WordCounts) -> dict[str, float]:
        return {
            "num_samples": counts.num_samples,
            "num_correct": counts.num_correct,
            "accuracy": counts.accuracy,
            "1-NED": counts.one_minus_ned,
            "confidence": counts.confidence,
            "label_length": counts.label_length,
        }

    return {
        "checkpoint": str(checkpoint),
        "charset": charset_name,
        "sets": {
            result.name: figures(result.counts)
            | {"num_broken": result.num_broken, "num_unlabelled": result.num_unlabelled}
            for result in results
        },
        "total_weighted_by_samples": figures(total(results)),
    }


def write_results(
    path: Path,
    results: Sequence[SetResult],
    *,
    checkpoint: Path,
    charset: Charset,
    of: Mapping[str, object] | None = None,
) -> None:
    """Write the figures of one checkpoint as JSON, and perhaps digests of what they are of."""
    record = results_as_json(results, checkpoint=checkpoint, charset_name=charset.name)
    if of is not None:
        record["of"] = dict(of)
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _evaluate_set(
    student: Student, test_set: TestSet, precision: str, batch_size: int
) -> SetResult:
    device = next(student.parameters()).device
    lmdb, labels = test_set.lmdb, test_set.labels
    counts, num_broken = WordCounts(), 0
    batches = [labels[start : start + batch_size] for start in range(0, len(labels), batch_size)]
    progress = tqdm(total=len(labels), desc=test_set.name, unit="image")
    with progress, ThreadPoolExecutor(_DECODE_THREADS) as executor:
        decoded = map_ahead(executor, lambda batch: _views(lmdb, batch), batches, _BATCHES_AHEAD)
        for batch, (views, is_broken) in zip(batches, decoded, strict=True):
            readings = read_views(student, torch.from_numpy(views).to(device), precision)
            for (_, label), reading, broken in zip(batch, readings, is_broken, strict=True):
                num_broken += broken
                prediction = "" if broken else test_set.charset.adapt(reading.text)
                counts.add(prediction, label, 0.0 if broken else reading.confidence)
            progress.update(len(batch))
    return SetResult(
        name=test_set.name,
        counts=counts,
        num_unlabelled=len(lmdb) - len(labels),
        num_broken=num_broken,
    )


def _test_labels(lmdb: WordLmdb, charset: Charset, max_label_length: int) -> list[tuple[int, str]]:
    """Return (LMDB index, adapted label) of the samples that count."""
    # Folding to ASCII would empty every label of a charset that is not.
    rules = LabelRules(
        normalize_unicode=charset.characters.isascii(), max_label_length=max_label_length
    )
    labelled = []
    for sample_idx in range(1, len(lmdb) + 1):
        raw = lmdb.label(sample_idx)
        label = rules.apply(raw or "")
        if not isinstance(label, LabelProblem) and (adapted := charset.adapt(label)):
            labelled.append((sample_idx, adapted))
    if not labelled:
        raise DataError(
            f"{lmdb.path}: no label is left under test charset {charset.name}; "
            "pass the charset its labels are written in"
        )
    return labelled


def _views(lmdb: WordLmdb, batch: list[tuple[int, str]]) -> tuple[np.ndarray, list[bool]]:
    views = np.zeros((len(batch), *VIEW_SHAPE), np.uint8)
    is_broken = [False] * len(batch)
    for idx, (sample_idx, _) in enumerate(batch):
        try:
            views[idx] = stretch(decode_image(lmdb.image(sample_idx) or b""))
        except ImageProblemError:
            is_broken[idx] = True
    return views, is_broken


def read_images(
    student: Student, paths: Sequence[Path], *, batch_size: int = 64
) -> Iterator[tuple[Path, Reading | ImageProblemError]]:
    """Read cropped words from image files, in order; a file that is no image yields its problem."""
    device = next(student.parameters()).device
    for start in range(0, len(paths), batch_size):
        some = paths[start : start + batch_size]
        outcomes: dict[Path, Reading | ImageProblemError] = {}
        views = {}
        for path in some:
            try:
                views[path] = stretch(decode_image(path.read_bytes()))
            except OSError as e:
                outcomes[path] = ImageProblemError(e.strerror or "cannot be read")
            except ImageProblemError as e:
                outcomes[path] = e
        if views:
            batch = torch.from_numpy(np.stack(list(views.values()))).to(device)
            outcomes |= dict(zip(views, read_views(student, batch, "fp32"), strict=True))
        yield from ((path, outcomes[path]) for path in some)
