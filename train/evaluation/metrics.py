"""The STR metrics, counted per sample and divided once at the end.

PARSeq's definitions (``strhub/models/base.py``): a word is right if it equals its label exactly,
after both passed through the test charset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from rapidfuzz.distance import Levenshtein


@dataclass(kw_only=True)
class WordCounts:
    """Sums over the samples of a test set; averaging averages of batches would be wrong."""

    num_samples: int = 0
    num_correct: int = 0
    sum_ned: float = 0.0
    """Edit distance over the longer of the two lengths, summed; two empty strings are equal."""
    sum_confidence: float = 0.0
    """Product of a word's character probabilities, EOS included, summed; NaN if one is unknown."""
    sum_length: int = 0
    """Characters predicted."""

    def add(self, prediction: str, label: str, confidence: float | None) -> None:
        """Count one sample."""
        self.num_samples += 1
        self.num_correct += prediction == label
        self.sum_ned += Levenshtein.normalized_distance(prediction, label)
        self.sum_confidence += math.nan if confidence is None else confidence
        self.sum_length += len(prediction)

    def __add__(self, other: WordCounts) -> WordCounts:
        return WordCounts(**{name: sum_ + vars(other)[name] for name, sum_ in vars(self).items()})

    @property
    def figures(self) -> Figures:
        """What the sums come to; zeros for an empty set."""
        n = max(self.num_samples, 1)
        return Figures(
            num_samples=self.num_samples,
            accuracy=100 * self.num_correct / n,
            one_minus_ned=100 * (self.num_samples - self.sum_ned) / n,
            confidence=None if math.isnan(self.sum_confidence) else 100 * self.sum_confidence / n,
            label_length=self.sum_length / n,
        )


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one test set, or of several together."""

    num_samples: int
    accuracy: float
    """Words read exactly, in percent."""
    one_minus_ned: float
    """1 - NED in percent."""
    confidence: float | None
    """Mean over words, in percent; None if it is not known."""
    label_length: float
    """Mean predicted length in characters."""

    def to_json(self) -> dict[str, float | None]:
        """Return the figures by the names people know them by."""
        figures = asdict(self)
        figures["1-NED"] = figures.pop("one_minus_ned")
        return figures


def plain_mean(of_sets: Sequence[Figures]) -> Figures:
    """Return the mean of the figures of some sets: each set counts once."""
    confidences = [figures.confidence for figures in of_sets if figures.confidence is not None]
    return Figures(
        num_samples=sum(figures.num_samples for figures in of_sets),
        accuracy=fmean(figures.accuracy for figures in of_sets),
        one_minus_ned=fmean(figures.one_minus_ned for figures in of_sets),
        confidence=fmean(confidences) if len(confidences) == len(of_sets) else None,
        label_length=fmean(figures.label_length for figures in of_sets),
    )
