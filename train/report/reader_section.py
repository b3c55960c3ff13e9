"""What the page shows of one reader: figures, confusions, errors, stages, attention, curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from ...shared.cache.spec import TeacherSpec
from ..evaluation.results import Evaluation
from ..evaluation.stages import stage_table
from ..evaluation.tables import ShownTable
from ..loop.curves import CURVES_NAME
from ..reading.readers import Reader
from ..reading.words import ReadWord
from .gallery import encoded_picture, gallery, pick_at_random, surest_first
from .pictures import AttentionPicture, attention_pictures, png_uri
from .statistics import (
    ERROR_KINDS,
    NOTHING,
    Confusions,
    Rate,
    accuracy_by_length,
    expected_error,
    kinds_of_error,
    reliability,
)

NUM_CARDS = 24
"""Of a gallery, at most."""

_NUM_ERRORS = 480
"""Shown of one reader, at most; each of its test sets has the same share."""

_NUM_COLOURS = 6
"""Of the style sheet; readers beyond so many share them."""

_NUM_CHARACTERS = 96
_NUM_CONFUSIONS = 20
_NUM_ERRORS_PER_CHARACTER = 3
_NUM_WITH_ATTENTION = 3


def section_of(evaluation: Evaluation, letter: str, number: int) -> dict[str, Any]:
    """Return all that the template shows of one reader, some pictures read again.

    `letter` is what it is called among others, empty if there are none; `number` counts from 0.

    Raises:
        ImageProblemError: a picture is not there any more.
    """
    reader, words = evaluation.reader, evaluation.words
    teacher, facts, attention = "", reader.kind, []
    if isinstance(reader, Reader):
        teacher = reader.teacher or ""
        attention = _attention(reader, evaluation)
        facts = (
            f"{reader.num_parameters:,} parameters, charset "
            f"{reader.recogniser.tokenizer.charset.name}, {reader.precision}; "
            f"{f'teacher {teacher}' if teacher else 'no teacher'}"
        )
    checkpoint = reader.checkpoint
    curves = checkpoint.parent / CURVES_NAME if checkpoint else None
    confusions, bins = Confusions(words), reliability(words)
    frequent = confusions.frequent_characters(_NUM_CHARACTERS)
    by_character = confusions.by_character()
    return {
        "letter": letter,
        "colour": 1 + number % _NUM_COLOURS,
        "name": f"{checkpoint.resolve().parent.name}/{checkpoint.name}"
        if checkpoint
        else reader.name,
        "source": reader.name,
        "facts": facts,
        "random_teacher": teacher if TeacherSpec.has_random_weights(teacher) else "",
        "anchor": f"reader-{letter.lower() or 'a'}",
        "figures": evaluation.counts.figures,
        "table": evaluation.results,
        "by_length": accuracy_by_length(words),
        "reliability": bins,
        "calibration_error": None if bins is None else expected_error(bins),
        "num_characters": len(by_character),
        "characters": [
            {
                "text": text,
                "rate": by_character[text],
                "errors": confusions.errors(text)[:_NUM_ERRORS_PER_CHARACTER],
            }
            for text in frequent
            if text in by_character
        ],
        "matrix_characters": [*frequent, NOTHING],
        "confusions": confusions,
        "confusion_table": _confusion_table(confusions, by_character),
        "error_table": _error_table(evaluation),
        "errors_by_set": _errors_by_set(evaluation, letter),
        "stages": _stages(evaluation),
        "attention": attention,
        "curves": png_uri(curves) if curves and curves.exists() else None,
    }


def _confusion_table(confusions: Confusions, by_character: Mapping[str, Rate]) -> ShownTable:
    rows = []
    for (character, read), num in confusions.errors()[:_NUM_CONFUSIONS]:
        share = f"{100 * num / by_character[character].num_samples:.1f}" if character else ""
        rows.append([character or "nothing", read or "nothing", f"{num:,}", share])
    return ShownTable(headers=["label", "read as", "times", "of its label, %"], rows=rows)


def _error_table(evaluation: Evaluation) -> ShownTable:
    """Return how many wrong words of each test set are of which kind; a word may be of several."""
    errors = {
        result.name: [word for word in result.words if word.is_error] for result in evaluation.sets
    }
    of_kind = {name: Counter(chain(*map(_kinds, words))) for name, words in errors.items()}
    kinds = [kind for kind in ERROR_KINDS if any(counts[kind] for counts in of_kind.values())]
    rows = [
        [name, f"{len(words):,}", *(f"{of_kind[name][kind]:,}" for kind in kinds)]
        for name, words in errors.items()
    ]
    return ShownTable(headers=["set", "wrong", *kinds], rows=rows)


def _kinds(word: ReadWord) -> list[str]:
    return kinds_of_error(word.adapted_label, word.adapted_text)


def _errors_by_set(evaluation: Evaluation, letter: str) -> list[dict[str, Any]]:
    """Return wrong words of each test set that has some, each with its kinds."""
    num_shown = max(NUM_CARDS, _NUM_ERRORS // len(evaluation.sets))
    found = []
    for result in evaluation.sets:
        errors = [word for word in result.words if word.is_error]
        shown = surest_first(errors, num_shown)
        of_set = gallery(result.name, len(errors), [{letter: word} for word in shown], evaluation)
        for card, word in zip(of_set["cards"], shown, strict=True):
            card["kinds"] = _kinds(word)
        if errors:
            found.append(of_set)
    return found


def _stages(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the table of stages, and words that the last reads otherwise than the first."""
    if not evaluation.stages:
        return None
    first, *_, last = (stage.name for stage in evaluation.stages)
    corrected, spoiled = [], []
    for word in evaluation.words:
        if word.problem is None:
            pair = {first: _draft(word, first), last: word}
            if word.is_correct and not pair[first].is_correct:
                corrected.append(pair)
            elif pair[first].is_correct and not word.is_correct:
                spoiled.append(pair)
    titles = {
        f"Corrected: wrong by {first}, right by {last}": corrected,
        f"Spoiled: right by {first}, wrong by {last}": spoiled,
    }
    return {
        "table": stage_table(evaluation.stages),
        "galleries": [
            gallery(title, len(found), pick_at_random(found, NUM_CARDS), evaluation)
            for title, found in titles.items()
        ],
    }


def _draft(word: ReadWord, stage: str) -> ReadWord:
    """Return a word as an earlier stage read it, whose probabilities were not kept."""
    text = word.drafts[stage]
    return replace(word, text=text, adapted_text=text, character_confidence=None)


def _attention(
    reader: Reader, evaluation: Evaluation
) -> list[tuple[ReadWord, Sequence[AttentionPicture]]]:
    """Return some words, right and wrong ones, and where the recogniser looked, if it can say."""
    right = [word for word in evaluation.words if word.is_correct]
    wrong = [word for word in evaluation.words if word.is_error]
    rows: list[tuple[ReadWord, Sequence[AttentionPicture]]] = []
    for some in (right, wrong):
        for word in pick_at_random(some, _NUM_WITH_ATTENTION):
            encoded = encoded_picture(evaluation, word)
            pictures = attention_pictures(reader.recogniser, encoded, word.text)
            if pictures is not None:
                rows.append((word, pictures))
    return rows
