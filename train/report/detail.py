"""What the page shows of one student: its figures, confusions, errors, attention and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from markupsafe import Markup

from ...shared.cache.schema import TeacherSpec
from ..evaluation.evaluate import SetResult, total
from ..evaluation.metrics import Figures
from ..evaluation.results import Table, results_as_table
from ..evaluation.test_sets import TestSet
from ..loop.checkpoint import build_student, load_checkpoint
from ..loop.curves import read_panels
from ..models.student import Student
from .figures import NUM_COLOURS, curve_figure
from .gallery import Card, Outcome, card_of, draw, errors_of, most_confident, outcomes_of
from .pictures import Glance, glances
from .statistics import NOTHING, Calibration, Confusions, MatrixCell, Rate, calibration

NUM_CARDS = 24
"""Of a gallery, at most."""

_NUM_CHARACTERS = 96
_NUM_CONFUSIONS = 20
_NUM_ERRORS_PER_CHARACTER = 3
_NUM_WITH_ATTENTION = 3
_NUM_BROKEN = 20


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one student made of the test sets, and where the pictures are."""

    checkpoint: Path
    test_sets: Sequence[TestSet]
    results: Sequence[SetResult]
    """Of `test_sets`, in their order."""

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """Every sample of every set."""
        return outcomes_of(self.results)

    @property
    def sets_by_name(self) -> dict[str, TestSet]:
        """Where the pictures are, by the set's name."""
        return {test_set.name: test_set for test_set in self.test_sets}


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Some of many samples."""

    title: str
    num_all: int
    cards: Sequence[Card]


@dataclass(frozen=True, kw_only=True)
class CharacterRow:
    """How one character of the labels was read."""

    text: str
    rate: Rate
    errors: Sequence[tuple[tuple[str, str], int]]
    """As of `Confusions.errors`, the most frequent ones."""


@dataclass(frozen=True, kw_only=True)
class AttentionRow:
    """One word, and where the decoder looked while it wrote it."""

    label: str
    read: str
    is_correct: bool
    glances: Sequence[Glance]


@dataclass(frozen=True, kw_only=True)
class Detail:
    """One student's part of the page."""

    letter: str
    """Empty if there is only one student."""
    colour: int
    """Which of the style sheet's, from 1."""
    name: str
    checkpoint: Path
    num_parameters: int
    charset: str
    teacher: str | None
    teacher_is_random: bool
    figures: Figures
    """Of all samples together."""
    table: Table
    calibration: Calibration
    num_characters: int
    """How many different ones the labels have."""
    characters: Sequence[CharacterRow]
    matrix_characters: Sequence[str]
    """Of rows and columns, `NOTHING` last."""
    matrix: Sequence[MatrixCell]
    confusions: Table
    galleries: Sequence[Gallery]
    broken: Table
    attention: Sequence[AttentionRow]
    curves: Sequence[Markup]

    @property
    def anchor(self) -> str:
        """What its place on the page is called."""
        return f"student-{self.letter.lower() or 'a'}"

    @property
    def parts(self) -> dict[str, str]:
        """Headings by the ends of their anchors."""
        parts = {
            "characters": "Characters",
            "confusions": "Confusions",
            "errors": "Errors",
            "attention": "Attention",
        }
        return parts | ({"training": "Training"} if self.curves else {})


def detail_of(evaluation: Evaluation, letter: str, number: int, device: torch.device) -> Detail:
    """Work out all that the page shows of one student, and read a few pictures again.

    Args:
        evaluation: Of the student.
        letter: What it is called among others; empty if there are none.
        number: Which student it is, from 0.
        device: To read on.

    Raises:
        CheckpointError: the checkpoint cannot be loaded any more.
        ImageProblemError: a picture is not there any more.
    """
    checkpoint = evaluation.checkpoint
    saved = load_checkpoint(checkpoint)
    student, teacher = build_student(saved, checkpoint).to(device), saved["teacher"]
    samples = [outcome.sample for outcome in evaluation.outcomes]
    confusions = Confusions(samples)
    frequent = confusions.frequent_characters(_NUM_CHARACTERS)
    by_character = confusions.by_character()
    return Detail(
        letter=letter,
        colour=1 + number % NUM_COLOURS,
        name=f"{checkpoint.resolve().parent.name}/{checkpoint.name}",
        checkpoint=checkpoint,
        num_parameters=sum(parameter.numel() for parameter in student.parameters()),
        charset=student.tokenizer.charset.name,
        teacher=teacher,
        teacher_is_random=TeacherSpec.has_random_weights(teacher or ""),
        figures=total(evaluation.results).figures,
        table=results_as_table(evaluation.results),
        calibration=calibration(samples),
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
        broken=_broken_table(evaluation.outcomes),
        attention=_attention(student, evaluation),
        curves=_curves(checkpoint.parent, letter),
    )


def _confusion_table(confusions: Confusions, by_character: Mapping[str, Rate]) -> Table:
    rows = []
    for (character, read), num in confusions.errors()[:_NUM_CONFUSIONS]:
        share = f"{100 * num / by_character[character].num_samples:.1f}" if character else ""
        rows.append([character or "nothing", read or "nothing", f"{num:,}", share])
    return Table(headers=["label", "read as", "times", "of its label, %"], rows=rows)


def _galleries(evaluation: Evaluation, letter: str) -> list[Gallery]:
    errors = errors_of(evaluation.outcomes)
    chosen = {
        "The most confident": most_confident(errors, NUM_CARDS),
        "Drawn at random": draw(errors, NUM_CARDS),
    }
    return [
        Gallery(
            title=title,
            num_all=len(errors),
            cards=[card_of({letter: error}, evaluation.sets_by_name) for error in shown],
        )
        for title, shown in chosen.items()
    ]


def _broken_table(outcomes: Sequence[Outcome]) -> Table:
    broken = [outcome for outcome in outcomes if outcome.sample.problem is not None]
    return Table(
        headers=["set", "sample", "label", "problem"],
        rows=[
            [o.set_name, str(o.sample.key), o.sample.label, str(o.sample.problem)]
            for o in broken[:_NUM_BROKEN]
        ],
        notes=f"{min(len(broken), _NUM_BROKEN)} of {len(broken):,}, all counted as wrong.",
    )


def _attention(student: Student, evaluation: Evaluation) -> list[AttentionRow]:
    right = [outcome for outcome in evaluation.outcomes if outcome.sample.is_correct]
    wrong = errors_of(evaluation.outcomes)
    rows = []
    for outcome in draw(right, _NUM_WITH_ATTENTION) + draw(wrong, _NUM_WITH_ATTENTION):
        sample = outcome.sample
        encoded = evaluation.sets_by_name[outcome.set_name].image(sample.key)
        rows.append(
            AttentionRow(
                label=sample.label,
                read=sample.prediction,
                is_correct=sample.is_correct,
                glances=glances(student, encoded, sample.prediction),
            )
        )
    return rows


def _curves(run: Path, letter: str) -> list[Markup]:
    if not any(run.glob("events.out.tfevents.*")):
        return []
    return [curve_figure(panel, f"curve-{letter}{i}") for i, panel in enumerate(read_panels(run))]
