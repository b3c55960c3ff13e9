"""Which words the page shows, and how each of them is shown.

What is picked is picked with a fixed seed: the same results give the same page.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...shared.charset import Charset
from ..evaluation.evaluate import Evaluation
from ..reading.words import ReadWord
from .pictures import picture_uri
from .statistics import NOTHING, edit_alignment

T = TypeVar("T")

_SEED = 0
_LOW, _MIDDLE, _HIGH = 0.5, 0.9, 0.99


@dataclass(frozen=True, kw_only=True)
class ShownCharacter:
    """One character of what was read, the end of it, or a gap where one of the label is missing."""

    text: str
    """Empty for a gap, and for the end."""
    confidence: float | None = None
    """0 to 1; None for a gap, and if it is not known."""
    expected: str | None = None
    """Of a wrong character what the label has there, empty if nothing; None of a right one."""
    is_gap: bool = False

    @property
    def level(self) -> str:
        """How sure the reader was, in words that the style sheet knows."""
        if self.is_gap:
            return "gap"
        if self.confidence is None:
            return "sure"
        if self.confidence < _LOW:
            return "low"
        if self.confidence < _MIDDLE:
            return "middle"
        return "high" if self.confidence < _HIGH else "sure"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A picture as the gallery shows it."""

    picture: str
    """Data URI."""
    words: Mapping[str, ReadWord]
    """What each reader read in it, by the reader's letter, which is empty if there is only one."""

    @property
    def word(self) -> ReadWord:
        """What the first reader read."""
        return next(iter(self.words.values()))


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Some of many pictures."""

    title: str
    num_all: int
    cards: Sequence[Card]


def gallery(
    title: str,
    every: Sequence[Mapping[str, ReadWord]],
    shown: Sequence[Mapping[str, ReadWord]],
    evaluation: Evaluation,
) -> Gallery:
    """Return the cards of pictures that could be decoded.

    Args:
        title: Its heading.
        every: The pictures of which some are shown: what each reader read, by its letter.
        shown: Those.
        evaluation: Whose test sets the pictures are of.

    Raises:
        ImageProblemError: a picture is not there any more.
    """
    test_sets = {test_set.name: test_set for test_set in evaluation.test_sets}
    cards = []
    for words in shown:
        first = next(iter(words.values()))
        encoded = test_sets[first.set_name].image(first.image)
        cards.append(Card(picture=picture_uri(encoded), words=words))
    return Gallery(title=title, num_all=len(every), cards=cards)


def most_confident(words: Sequence[ReadWord], num_shown: int) -> list[ReadWord]:
    """Return those that the reader was surest of, surest first."""
    return sorted(words, key=lambda word: -(word.confidence or 0))[:num_shown]


def pick_at_random(items: Sequence[T], num_shown: int) -> list[T]:
    """Return a random sample of some items, always the same, in their order."""
    chosen = random.Random(_SEED).sample(range(len(items)), min(num_shown, len(items)))
    return [items[i] for i in sorted(chosen)]


def shown_characters(word: ReadWord, charset: Charset) -> Iterator[ShownCharacter]:
    """Yield the characters as read, marked where they differ from the label, then the end.

    The test charset decides what differs; a character that it deletes is shown, but never wrong.
    The end is shown if its probability is known.
    """
    pairs = edit_alignment(word.adapted_label, word.adapted_text)
    confidences: Sequence[float | None] = word.character_confidence or [None] * len(word.text)
    for character, confidence in zip(word.text, confidences, strict=False):
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
    if len(confidences) > len(word.text):
        yield ShownCharacter(text="", confidence=confidences[-1])


def _gap(expected: str) -> ShownCharacter:
    return ShownCharacter(text="", expected=expected, is_gap=True)
