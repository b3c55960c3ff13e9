"""What each stage of a recogniser reads, and what it makes of what the first one read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..reading.words import ReadWord
from .metrics import WordCounts
from .tables import ShownTable


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of a recogniser wrote of some words."""

    name: str
    counts: WordCounts
    num_corrected: int | None
    """Words read correctly that the first stage reads wrongly; None of that one."""
    num_spoiled: int | None
    """Words read wrongly that the first stage reads correctly; None of that one."""

    def to_json(self) -> dict[str, float | None]:
        """Return the figures by the names people know them by."""
        figures = self.counts.figures
        return {
            "accuracy": figures.accuracy,
            "1-NED": figures.one_minus_ned,
            "num_correct": self.counts.num_correct,
            "num_corrected": self.num_corrected,
            "num_spoiled": self.num_spoiled,
        }


def find_stages(words: Sequence[ReadWord]) -> list[Stage]:
    """Return the stages that wrote some words, in their order; none if there are no drafts."""
    names = next(([*word.drafts, word.stage] for word in words if word.drafts), [])
    stages: list[Stage] = []
    first: list[bool] = []
    for name in names:
        counts, right = WordCounts(), []
        for word in words:
            # A picture that cannot be decoded has no drafts; it counts as wrong at every stage.
            text = word.drafts.get(name, word.adapted_text)
            counts.add(text, word.adapted_label, None)
            right.append(text == word.adapted_label)
        changes = Counter(zip(first, right, strict=True)) if stages else None
        stages.append(
            Stage(
                name=name,
                counts=counts,
                num_corrected=None if changes is None else changes[False, True],
                num_spoiled=None if changes is None else changes[True, False],
            )
        )
        first = first or right
    return stages


def stage_table(stages: Sequence[Stage]) -> ShownTable:
    """Return a row for each stage."""
    return ShownTable(
        headers=["stage", "accuracy", "1-NED", "corrected", "spoiled"],
        rows=[
            [
                stage.name,
                f"{stage.counts.figures.accuracy:.2f}",
                f"{stage.counts.figures.one_minus_ned:.2f}",
                *("" if n is None else f"{n:,}" for n in (stage.num_corrected, stage.num_spoiled)),
            ]
            for stage in stages
        ],
        notes="All samples of all sets. corrected and spoiled: words that the first stage reads "
        "wrongly and this one correctly, and the other way round.",
    )
