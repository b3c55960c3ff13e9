"""One record for a picture of a word, from its file to tables and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class WordPicture:
    """A picture of one word that is to be read."""

    image: Any
    """Of a test set the sample's number or file, else the picture as it was given."""
    set_name: str = ""
    """Of the test set; empty if it is of none."""
    label: str = ""
    """As written; empty if there is none."""
    adapted_label: str = ""
    """As the test charset has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadWord(WordPicture):
    """What was read in a picture of one word."""

    text: str
    """As read, in the reader's own charset; empty if the picture cannot be decoded."""
    adapted_text: str
    """As the test charset has it; without one, as read."""
    character_confidence: tuple[float, ...] | None
    """Probability of each character, then of EOS; none of EOS if the text fills all positions.

    Empty if the picture cannot be decoded; None if the reader knows no probabilities.
    """
    size_px: tuple[int, int] | None
    """Width and height of the picture, None if it cannot be decoded."""
    word_confidence: float | None = None
    """Probability of the whole word, of a reader that states no character's."""
    problem: str | None = None
    """Why the picture cannot be decoded; such a word counts as wrong, at confidence 0."""
    stage: str = ""
    """Which of the recogniser's stages wrote the text: its last. Empty of a reader that is none."""
    drafts: Mapping[str, str] = field(default_factory=dict)
    """What earlier stages wrote, by name in their order, as the test charset has it.

    Empty if there are none, or the picture cannot be decoded.
    """

    @property
    def is_correct(self) -> bool:
        """Whether label and text are equal under the test charset."""
        return self.adapted_text == self.adapted_label

    @property
    def is_error(self) -> bool:
        """Whether the picture was decoded, and read wrongly."""
        return self.problem is None and not self.is_correct

    @property
    def confidence(self) -> float | None:
        """Product of the character probabilities, EOS included, or the word's; None if unknown."""
        if self.character_confidence is None:
            return self.word_confidence
        return 0.0 if self.problem is not None else prod(self.character_confidence)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON knows it, without what a picture of no test set lacks."""
        image = str(self.image) if isinstance(self.image, Path) else self.image
        record: dict[str, Any] = {
            "image": image if isinstance(image, int | str) else None,
            "text": self.text,
            "confidence": self.confidence,
            "character_confidence": self.character_confidence,
        }
        if self.problem is not None:
            record["problem"] = self.problem
        if self.drafts:
            record["drafts"] = dict(self.drafts)
        if self.set_name:
            record |= {
                "set": self.set_name,
                "label": self.label,
                "adapted_label": self.adapted_label,
                "adapted_text": self.adapted_text,
                "is_correct": self.is_correct,
            }
        return record
