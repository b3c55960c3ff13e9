"""Which samples the page shows, and how each of them is shown.

What is drawn is drawn with a fixed seed: the same results give the same page.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...shared.charset import Charset
from ..evaluation.evaluate import SampleResult, SetResult
from ..evaluation.test_sets import SampleKey, TestSet
from .pictures import picture_uri
from .statistics import NOTHING, align

T = TypeVar("T")

_SEED = 0
_LOW, _MIDDLE, _HIGH = 0.5, 0.9, 0.99


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A sample's outcome, and the set it is of."""

    set_name: str
    sample: SampleResult


@dataclass(frozen=True, kw_only=True)
class ShownCharacter:
    """One character of a prediction, or a gap where one of the label is missing."""

    text: str
    """Empty for a gap, and for EOS."""
    confidence: float | None
    """0 to 1; None for a gap."""
    expected: str | None = None
    """Of a wrong character what the label has there, empty if nothing; None of a right one."""

    @property
    def level(self) -> str:
        """How sure the student was, in words that the style sheet knows."""
        if self.confidence is None:
            return "gap"
        if self.confidence < _LOW:
            return "low"
        if self.confidence < _MIDDLE:
            return "middle"
        return "high" if self.confidence < _HIGH else "sure"


@dataclass(frozen=True, kw_only=True)
class ShownReading:
    """What one student read in a picture."""

    letter: str
    """Of the student, if there are several."""
    characters: tuple[ShownCharacter, ...]
    end: ShownCharacter | None
    """EOS, None if none came."""
    confidence: float
    is_correct: bool


@dataclass(frozen=True, kw_only=True)
class Card:
    """A sample as the gallery shows it."""

    set_name: str
    key: SampleKey
    picture: str
    """Data URI."""
    label: str
    """As written."""
    readings: tuple[ShownReading, ...]


def outcomes_of(results: Sequence[SetResult]) -> list[Outcome]:
    """Return every sample of some sets, in order."""
    return [Outcome(set_name=some.name, sample=s) for some in results for s in some.samples]


def most_confident(outcomes: Sequence[Outcome], num_shown: int) -> list[Outcome]:
    """Return those that the student was surest of, surest first."""
    return sorted(outcomes, key=lambda outcome: -outcome.sample.confidence)[:num_shown]


def errors_of(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the wrong words of pictures that could be decoded."""
    return [o for o in outcomes if not o.sample.is_correct and o.sample.problem is None]


def draw(items: Sequence[T], num_shown: int) -> list[T]:
    """Return a random sample of some items, always the same, in their order."""
    chosen = random.Random(_SEED).sample(range(len(items)), min(num_shown, len(items)))
    return [items[i] for i in sorted(chosen)]


def card_of(outcomes: Mapping[str, Outcome], test_sets: Mapping[str, TestSet]) -> Card:
    """Return the card of one sample, whose picture could be decoded.

    Args:
        outcomes: What each student made of it, by the student's letter.
        test_sets: By name.

    Raises:
        ImageProblemError: the picture is not there any more.
    """
    first = next(iter(outcomes.values()))
    test_set = test_sets[first.set_name]
    return Card(
        set_name=first.set_name,
        key=first.sample.key,
        picture=picture_uri(test_set.image(first.sample.key)),
        label=first.sample.label,
        readings=tuple(
            _reading(letter, outcome.sample, test_set.charset)
            for letter, outcome in outcomes.items()
        ),
    )


def _reading(letter: str, sample: SampleResult, charset: Charset) -> ShownReading:
    end = sample.character_confidence[len(sample.prediction) :]
    return ShownReading(
        letter=letter,
        characters=tuple(shown_characters(sample, charset)),
        end=ShownCharacter(text="", confidence=end[0]) if end else None,
        confidence=sample.confidence,
        is_correct=sample.is_correct,
    )


def shown_characters(sample: SampleResult, charset: Charset) -> Iterator[ShownCharacter]:
    """Yield the characters of a prediction as read, marked where they differ from the label.

    The test charset decides what differs; a character that it deletes is shown, but never wrong.
    """
    pairs = align(sample.adapted_label, sample.adapted_prediction)
    for character, confidence in zip(sample.prediction, sample.character_confidence, strict=False):
        wrong: list[str] = []
        num_left = len(charset.adapt(character))
        while num_left:
            expected, read = next(pairs)
            if read == NOTHING:
                yield _gap(expected)
                continue
            num_left -= 1
            if read != expected:
                wrong.append(expected)
        yield ShownCharacter(
            text=character, confidence=confidence, expected="".join(wrong) if wrong else None
        )
    yield from (_gap(expected) for expected, _ in pairs)


def _gap(expected: str) -> ShownCharacter:
    return ShownCharacter(text="", confidence=None, expected=expected)
