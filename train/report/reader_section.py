"""What the page shows of one reader: its figures, confusions, errors, attention and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ...shared.cache.spec import TeacherSpec
from ..evaluation.evaluate import Evaluation
from ..evaluation.metrics import Figures
from ..evaluation.results import ShownTable, results_as_table
from ..loop.curves import read_panels
from ..reading.readers import Reader
from ..reading.words import ReadWord
from .figures import NUM_COLOURS, curve_figure
from .gallery import Gallery, gallery, most_confident, pick_at_random
from .pictures import AttentionPicture, attention_pictures
from .statistics import NOTHING, Confusions, MatrixCell, Rate, Reliability, reliability

NUM_CARDS = 24
"""Of a gallery, at most."""

_NUM_CHARACTERS = 96
_NUM_CONFUSIONS = 20
_NUM_ERRORS_PER_CHARACTER = 3
_NUM_WITH_ATTENTION = 3
_NUM_BROKEN = 20


@dataclass(frozen=True, kw_only=True)
class CharacterRow:
    """How one character of the labels was read."""

    text: str
    rate: Rate
    errors: Sequence[tuple[tuple[str, str], int]]
    """As of `Confusions.errors`, the most frequent ones."""


@dataclass(frozen=True, kw_only=True)
class ReaderSection:
    """One reader's part of the page."""

    letter: str
    """Empty if there is only one reader."""
    colour: int
    """Which of the style sheet's, from 1."""
    name: str
    source: str
    """What reads: a checkpoint's path, or a function's name."""
    facts: str
    """What is known of it, in words."""
    random_teacher: str
    """Name of a teacher that was never trained; empty if there is none."""
    figures: Figures
    """Of all words together."""
    table: ShownTable
    reliability: Reliability | None
    """None if the confidence of words is not known."""
    num_characters: int
    """How many different ones the labels have."""
    characters: Sequence[CharacterRow]
    matrix_characters: Sequence[str]
    """Of rows and columns, `NOTHING` last."""
    matrix: Sequence[MatrixCell]
    confusions: ShownTable
    galleries: Sequence[Gallery]
    broken: ShownTable
    attention: Sequence[tuple[ReadWord, Sequence[AttentionPicture]]]
    """Some words, and where the recogniser looked; empty if it cannot say."""
    curves: Sequence[Markup]

    @property
    def anchor(self) -> str:
        """What its place on the page is called."""
        return f"reader-{self.letter.lower() or 'a'}"

    @property
    def parts(self) -> dict[str, str]:
        """Headings by the ends of their anchors."""
        parts = {"characters": "Characters", "confusions": "Confusions", "errors": "Errors"}
        if self.attention:
            parts["attention"] = "Attention"
        return parts | ({"training": "Training"} if self.curves else {})


def section_of(evaluation: Evaluation, letter: str, number: int) -> ReaderSection:
    """Work out all that the page shows of one reader, and read a few pictures again.

    Args:
        evaluation: Of the reader.
        letter: What it is called among others; empty if there are none.
        number: Which reader it is, from 0.

    Raises:
        ImageProblemError: a picture is not there any more.
    """
    reader, words = evaluation.reader, evaluation.words
    checkpoint = reader.checkpoint if isinstance(reader, Reader) else None
    teacher = reader.teacher or "" if isinstance(reader, Reader) else ""
    confusions = Confusions(words)
    frequent = confusions.frequent_characters(_NUM_CHARACTERS)
    by_character = confusions.by_character()
    return ReaderSection(
        letter=letter,
        colour=1 + number % NUM_COLOURS,
        name=f"{checkpoint.resolve().parent.name}/{checkpoint.name}" if checkpoint else reader.name,
        source=reader.name,
        facts=_facts(reader) if isinstance(reader, Reader) else "given as a function",
        random_teacher=teacher if TeacherSpec.has_random_weights(teacher) else "",
        figures=evaluation.counts.figures,
        table=results_as_table(evaluation.sets),
        reliability=reliability(words),
        num_characters=len(by_character),
        characters=[
            CharacterRow(
                text=text,
                rate=by_character[text],
                errors=confusions.errors(text)[:_NUM_ERRORS_PER_CHARACTER],
            )
            for text in frequent
            if text in by_character
        ],
        matrix_characters=[*frequent, NOTHING],
        matrix=confusions.matrix([*frequent, NOTHING]),
        confusions=_confusion_table(confusions, by_character),
        galleries=_galleries(evaluation, letter),
        broken=_broken_table(words),
        attention=_attention(reader, evaluation) if isinstance(reader, Reader) else [],
        curves=_curves(checkpoint.parent, letter) if checkpoint else [],
    )


def _facts(reader: Reader) -> str:
    charset = reader.recogniser.tokenizer.charset.name
    return (
        f"{reader.num_parameters:,} parameters, charset {charset}, {reader.precision}; "
        f"teacher {reader.teacher or 'not recorded'}"
    )


def _confusion_table(confusions: Confusions, by_character: Mapping[str, Rate]) -> ShownTable:
    rows = []
    for (character, read), num in confusions.errors()[:_NUM_CONFUSIONS]:
        share = f"{100 * num / by_character[character].num_samples:.1f}" if character else ""
        rows.append([character or "nothing", read or "nothing", f"{num:,}", share])
    return ShownTable(headers=["label", "read as", "times", "of its label, %"], rows=rows)


def _galleries(evaluation: Evaluation, letter: str) -> list[Gallery]:
    errors = [word for word in evaluation.words if word.is_error]
    chosen = {"Picked at random": pick_at_random(errors, NUM_CARDS)}
    if all(word.confidence is not None for word in errors):
        chosen = {"The most confident": most_confident(errors, NUM_CARDS), **chosen}
    of_letter = [{letter: word} for word in errors]
    return [
        gallery(title, of_letter, [{letter: word} for word in shown], evaluation)
        for title, shown in chosen.items()
    ]


def _broken_table(words: Sequence[ReadWord]) -> ShownTable:
    broken = [word for word in words if word.problem is not None]
    return ShownTable(
        headers=["set", "sample", "label", "problem"],
        rows=[
            [word.set_name, str(word.image), word.label, str(word.problem)]
            for word in broken[:_NUM_BROKEN]
        ],
        notes=f"{min(len(broken), _NUM_BROKEN)} of {len(broken):,}, all counted as wrong.",
    )


def _attention(
    reader: Reader, evaluation: Evaluation
) -> list[tuple[ReadWord, Sequence[AttentionPicture]]]:
    right = [word for word in evaluation.words if word.is_correct]
    wrong = [word for word in evaluation.words if word.is_error]
    test_sets = {test_set.name: test_set for test_set in evaluation.test_sets}
    rows: list[tuple[ReadWord, Sequence[AttentionPicture]]] = []
    for some in (right, wrong):
        for word in pick_at_random(some, _NUM_WITH_ATTENTION):
            encoded = test_sets[word.set_name].image(word.image)
            pictures = attention_pictures(reader.recogniser, encoded, word.text)
            if pictures is not None:
                rows.append((word, pictures))
    return rows


def _curves(run: Path, letter: str) -> list[Markup]:
    if not any(run.glob("events.out.tfevents.*")):
        return []
    return [curve_figure(panel, f"curve-{letter}{i}") for i, panel in enumerate(read_panels(run))]
