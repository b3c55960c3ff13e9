"""The STR metrics, counted per sample and divided once at the end.

PARSeq's definitions (``strhub/models/base.py``): a word is right if it equals its label exactly,
after both passed through the test charset.
"""

from __future__ import annotations

from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein


@dataclass(kw_only=True)
class WordCounts:
    """Sums over the samples of a test set; averaging averages of batches would be wrong."""

    num_samples: int = 0
    num_correct: int = 0
    sum_ned: float = 0.0
    """Edit distance over the longer of the two lengths, summed; two empty strings are equal."""
    sum_confidence: float = 0.0
    """Product of a word's character probabilities, EOS included, summed."""
    sum_length: int = 0
    """Characters predicted."""

    def add(self, prediction: str, label: str, confidence: float) -> None:
        """Count one sample."""
        self.num_samples += 1
        self.num_correct += prediction == label
        self.sum_ned += Levenshtein.normalized_distance(prediction, label)
        self.sum_confidence += confidence
        self.sum_length += len(prediction)

    def __add__(self, other: WordCounts) -> WordCounts:
        return WordCounts(**{name: v + vars(other)[name] for name, v in vars(self).items()})

    @property
    def accuracy(self) -> float:
        """Word accuracy in percent; 0 for an empty set."""
        return 100 * self.num_correct / max(self.num_samples, 1)

    @property
    def one_minus_ned(self) -> float:
        """1 - NED in percent; 0 for an empty set."""
        return 100 * (self.num_samples - self.sum_ned) / max(self.num_samples, 1)

    @property
    def confidence(self) -> float:
        """Mean confidence in percent."""
        return 100 * self.sum_confidence / max(self.num_samples, 1)

    @property
    def label_length(self) -> float:
        """Mean predicted length in characters."""
        return self.sum_length / max(self.num_samples, 1)
