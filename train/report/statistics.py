"""What the words of an evaluation say about where a reader fails, under the test charset."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, zip_longest
from statistics import fmean

from rapidfuzz.distance import Levenshtein

from ..reading.words import ReadWord

NOTHING = ""
"""Stands for the missing side of an alignment: a character left out, or one too many."""

NUM_CONFIDENCE_BINS = 10
"""Of a reliability diagram, all equally wide."""

ERROR_KINDS = (
    "one character off",
    "too short",
    "too long",
    "right length",
    "only upper or lower case",
)
"""What `kinds_of_error` tells apart."""

_Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of right ones, with what so many samples can say of it."""

    num_right: int
    num_samples: int

    @property
    def percent(self) -> float:
        """Right ones per hundred."""
        return 100 * self.num_right / self.num_samples

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95 %, in percent: it stays in 0 to 100, also for few."""
        n, share, z = self.num_samples, self.num_right / self.num_samples, _Z_95
        centre = share + z**2 / (2 * n)
        half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        scale = 100 / (1 + z**2 / n)
        # Exact where there is nothing to round.
        low = scale * (centre - half) if self.num_right else 0.0
        high = scale * (centre + half) if self.num_right < n else 100.0
        return low, high


def accuracy_by_length(words: Iterable[ReadWord]) -> dict[int, Rate]:
    """Return the word accuracy by the label's length in characters, in that order."""
    by_length: dict[int, list[ReadWord]] = {}
    for word in words:
        by_length.setdefault(len(word.adapted_label), []).append(word)
    return {length: _rate(some) for length, some in sorted(by_length.items())}


def edit_alignment(label: str, text: str) -> Iterator[tuple[str, str]]:
    """Pair the characters of a label with those of a text, by the fewest edits.

    `NOTHING` stands on the right for a character left out, on the left for one too many.
    """
    for edit in Levenshtein.opcodes(label, text):
        written = label[edit.src_start : edit.src_end]
        read = text[edit.dest_start : edit.dest_end]
        yield from zip_longest(written, read, fillvalue=NOTHING)


def kinds_of_error(label: str, text: str) -> list[str]:
    """Return those of `ERROR_KINDS` that a text is beside a label that differs from it."""
    is_of_kind = (
        Levenshtein.distance(label, text) == 1,
        len(text) < len(label),
        len(text) > len(label),
        len(text) == len(label),
        text.lower() == label.lower(),
    )
    return list(compress(ERROR_KINDS, is_of_kind))


class Confusions:
    """How often each character of the labels was read as each character."""

    def __init__(self, words: Iterable[ReadWord]) -> None:
        """Count the pairs of `edit_alignment` of all pictures that could be decoded."""
        self.counts = Counter(
            pair
            for word in words
            if word.problem is None
            for pair in edit_alignment(word.adapted_label, word.adapted_text)
        )
        self.num_of_label = Counter[str]()
        for (character, _), num in self.counts.items():
            self.num_of_label[character] += num

    def by_character(self) -> dict[str, Rate]:
        """Return how often each character of the labels was read as itself, in their order."""
        return {
            character: Rate(num_right=self.counts[character, character], num_samples=num)
            for character, num in sorted(self.num_of_label.items())
            if character != NOTHING
        }

    def errors(self, character: str | None = None) -> list[tuple[tuple[str, str], int]]:
        """Return the (label's, read) pairs that differ, of one character or all, by frequency."""
        wrong = [
            (pair, num)
            for pair, num in self.counts.items()
            if pair[0] != pair[1] and character in (None, pair[0])
        ]
        return sorted(wrong, key=lambda entry: (-entry[1], entry[0]))

    def frequent_characters(self, num_most: int) -> list[str]:
        """Return the characters that labels and texts have most often, in their order."""
        num_seen = self.num_of_label.copy()
        for (_, read), num in self.counts.items():
            num_seen[read] += num
        del num_seen[NOTHING]
        return sorted(character for character, _ in num_seen.most_common(num_most))


@dataclass(frozen=True, kw_only=True)
class ConfidenceBin:
    """Words whose confidence lies in one interval, the lower end of it included."""

    low: float
    mean_confidence: float
    """0 to 1."""
    rate: Rate
    """Of the words, how many were read correctly."""


def reliability(words: Iterable[ReadWord]) -> list[ConfidenceBin] | None:
    """Sort the words of all pictures that could be decoded into equally wide bins of confidence.

    Bins without words are left out. None if the confidence of a word is not known.
    """
    members: dict[int, list[tuple[float, ReadWord]]] = {}
    for word in words:
        confidence = word.confidence
        if confidence is None:
            return None
        if word.problem is None:
            bin_idx = min(int(confidence * NUM_CONFIDENCE_BINS), NUM_CONFIDENCE_BINS - 1)
            members.setdefault(bin_idx, []).append((confidence, word))
    return [
        ConfidenceBin(
            low=bin_idx / NUM_CONFIDENCE_BINS,
            mean_confidence=fmean(confidence for confidence, _ in some),
            rate=_rate([word for _, word in some]),
        )
        for bin_idx, some in sorted(members.items())
    ]


def expected_error(bins: Sequence[ConfidenceBin]) -> float:
    """Return the expected calibration error in percent (Guo et al., ICML 2017, equation 3)."""
    num_words = sum(some.rate.num_samples for some in bins)
    distances = (
        some.rate.num_samples * abs(some.rate.percent - 100 * some.mean_confidence) for some in bins
    )
    return sum(distances) / max(num_words, 1)


def _rate(words: Sequence[ReadWord]) -> Rate:
    return Rate(num_right=sum(word.is_correct for word in words), num_samples=len(words))
