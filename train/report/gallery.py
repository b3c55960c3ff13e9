"""Which words the page shows, and how each of them is shown."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...shared.charset import Charset
from ...shared.data.images import ImageProblemError
from ..evaluation.results import Evaluation
from ..reading.words import ReadWord
from .pictures import picture_uri
from .statistics import NOTHING, edit_alignment

T = TypeVar("T")

_SEED = 0
_LEVELS = ((0.5, "low"), (0.9, "middle"), (0.99, "high"))
"""Confidences below so much are shown in the style sheet's class of that name."""


@dataclass(frozen=True, kw_only=True)
class ShownCharacter:
    """One character of what was read, the end of it, or a gap where one of the label is missing."""

    text: str = ""
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
        known = 1.0 if self.confidence is None else self.confidence
        return next((name for limit, name in _LEVELS if known < limit), "sure")


def gallery(
    title: str,
    num_all: int,
    shown: Sequence[Mapping[str, ReadWord]],
    evaluation: Evaluation,
) -> dict[str, Any]:
    """Return what the page shows of `num_all` pictures: for some, what each reader read, by letter.

    Raises:
        ImageProblemError: a picture is not there any more.
    """
    cards = []
    for words in shown:
        picture = picture_uri(encoded_picture(evaluation, next(iter(words.values()))))
        cards.append({"picture": picture, "words": words})
    return {"title": title, "num_all": num_all, "cards": cards}


def encoded_picture(evaluation: Evaluation, word: ReadWord) -> bytes:
    """Return the picture of a word from its test set."""
    (of_set,) = (some for some in evaluation.sets if some.name == word.set_name)
    try:
        return of_set.test_set.image(word.image)
    except ImageProblemError as e:
        raise ImageProblemError(f"{word.set_name}, {word.image}: {e}") from e


def surest_first(words: Sequence[ReadWord], num_shown: int) -> list[ReadWord]:
    """Return some words, those first that the reader was surest of.

    If there are more than are shown, half are the surest of all, the others drawn at random; all
    are if the confidence of a word is not known.
    """
    if any(word.confidence is None for word in words):
        return pick_at_random(words, num_shown)
    ordered = sorted(words, key=lambda word: -(word.confidence or 0))
    if len(ordered) <= num_shown:
        return ordered
    num_surest = num_shown // 2
    return [
        *ordered[:num_surest],
        *pick_at_random(ordered[num_surest:], num_shown - num_surest),
    ]


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
                yield ShownCharacter(expected=expected, is_gap=True)
                continue
            num_left -= 1
            if read != expected:
                wrong.append(expected)
        yield ShownCharacter(
            text=character, confidence=confidence, expected="".join(wrong) if wrong else None
        )
    yield from (ShownCharacter(expected=expected, is_gap=True) for expected, _ in pairs)
    if len(confidences) > len(word.text):
        yield ShownCharacter(confidence=confidences[-1])
