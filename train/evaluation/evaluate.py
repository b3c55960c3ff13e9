"""Reading test sets and pictures with a student, by PARSeq's protocol.

Ground truth and prediction both pass through the test charset; the student decodes all its
positions, never just as many as the label has. Every sample's outcome is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from tqdm import tqdm

from ...shared.ahead import map_ahead
from ...shared.data.images import ImageProblemError, decode_image, stretch
from ...shared.device import allow_fast_products, autocast
from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, VIEW_SHAPE, normalize
from ..models.student import Student
from .metrics import WordCounts
from .test_sets import SampleKey, TestSample, TestSet

_DECODE_THREADS = 2
_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a student read in one picture."""

    text: str
    character_confidence: tuple[float, ...]
    """Probability of each character, then of EOS; none of EOS if the text fills all positions."""

    @property
    def confidence(self) -> float:
        """Product of the character probabilities, EOS included."""
        return prod(self.character_confidence)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleResult:
    """What came of one sample; `TestSet.image` opens its picture again by the key."""

    key: SampleKey
    label: str
    """As written."""
    adapted_label: str
    """As the test charset has it."""
    prediction: str
    """As read, in the student's own charset; empty if the picture cannot be decoded."""
    adapted_prediction: str
    """As the test charset has it."""
    character_confidence: tuple[float, ...]
    """Of `Reading`; empty if the picture cannot be decoded."""
    problem: str | None = None
    """Why the picture cannot be decoded; such a sample counts as wrong, at confidence 0."""

    @property
    def is_correct(self) -> bool:
        """Whether label and prediction are equal under the test charset."""
        return self.adapted_prediction == self.adapted_label

    @property
    def confidence(self) -> float:
        """Product of the character probabilities, EOS included."""
        return prod(self.character_confidence) if self.character_confidence else 0.0


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What came of one test set."""

    name: str
    samples: tuple[SampleResult, ...]
    """In the order of the set."""
    num_unlabelled: int
    """Samples left out: the test charset leaves nothing of their label, or it is too long."""

    @cached_property
    def counts(self) -> WordCounts:
        """Sums over the samples."""
        counts = WordCounts()
        for sample in self.samples:
            counts.add(sample.adapted_prediction, sample.adapted_label, sample.confidence)
        return counts

    @property
    def num_broken(self) -> int:
        """Samples whose picture cannot be decoded."""
        return sum(sample.problem is not None for sample in self.samples)


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


def read_views(student: Student, views: torch.Tensor, precision: str) -> list[Reading]:
    """Read a batch of views. Shape: (B, 32, 128, 3), uint8, on the student's device."""
    with autocast(views.device, precision):
        logits = student.decode(normalize(views, STUDENT_MEAN, STUDENT_STD))
    texts, confidences = student.tokenizer.decode(logits.float().softmax(dim=-1))
    return [
        Reading(text=text, character_confidence=tuple(confidence.tolist()))
        for text, confidence in zip(texts, confidences, strict=True)
    ]


def _evaluate_set(
    student: Student, test_set: TestSet, precision: str, batch_size: int
) -> SetResult:
    device = next(student.parameters()).device
    samples = test_set.samples
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    results: list[SampleResult] = []
    progress = tqdm(total=len(samples), desc=test_set.name, unit="image")
    with progress, ThreadPoolExecutor(_DECODE_THREADS) as executor:
        decoded = map_ahead(executor, lambda some: _views(test_set, some), batches, _BATCHES_AHEAD)
        for batch, (views, problems) in zip(batches, decoded, strict=True):
            readings = read_views(student, torch.from_numpy(views).to(device), precision)
            results += map(_result, [test_set] * len(batch), batch, readings, problems)
            progress.update(len(batch))
    return SetResult(
        name=test_set.name, samples=tuple(results), num_unlabelled=test_set.num_unlabelled
    )


def _views(test_set: TestSet, batch: Sequence[TestSample]) -> tuple[np.ndarray, list[str | None]]:
    """Return the views of a batch, black where there is none, and why there is none."""
    views = np.zeros((len(batch), *VIEW_SHAPE), np.uint8)
    problems: list[str | None] = [None] * len(batch)
    for i, sample in enumerate(batch):
        try:
            views[i] = stretch(decode_image(test_set.image(sample.key)))
        except ImageProblemError as e:
            problems[i] = str(e)
    return views, problems


def _result(
    test_set: TestSet, sample: TestSample, reading: Reading, problem: str | None
) -> SampleResult:
    prediction = "" if problem else reading.text
    return SampleResult(
        key=sample.key,
        label=sample.label,
        adapted_label=sample.adapted_label,
        prediction=prediction,
        adapted_prediction=test_set.charset.adapt(prediction),
        character_confidence=() if problem else reading.character_confidence,
        problem=problem,
    )
