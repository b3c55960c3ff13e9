"""Awkward rows, each with its remark, worked out by hand."""

from __future__ import annotations

import pytest

from clipocr.train.evaluation.metrics import WordCounts

ROWS = [
    # prediction, label, right, normalised edit distance, remark
    ("word", "word", 1, 0, "equal"),
    ("Word", "word", 0, 1 / 4, "case counts; folding it is the charset's work"),
    ("", "word", 0, 1, "nothing read"),
    ("words", "word", 0, 1 / 5, "over-long: divided by the longer of the two"),
    ("wrd", "word", 0, 1 / 4, "one missing"),
    ("wrod", "word", 0, 2 / 4, "a transposition is two edits"),
    ("don't", "dont", 0, 1 / 5, "punctuation counts"),
    ("", "", 1, 0, "two empty strings are equal, and 0 / 0 is no error"),
    ("naïve", "naive", 0, 1 / 5, "one code point"),
    ("x" * 25, "y", 0, 1, "nothing in common"),
]


@pytest.mark.parametrize(("prediction", "label", "right", "ned", "remark"), ROWS)
def test_row(prediction: str, label: str, right: int, ned: float, remark: str) -> None:
    counts = WordCounts()
    counts.add(prediction, label, 0.5)
    assert counts.num_correct == right, remark
    assert counts.sum_ned == pytest.approx(ned), remark
    assert counts.figures.label_length == len(prediction)
    assert counts.figures.confidence == 50


def test_sets_add_up_by_samples_not_by_averages() -> None:
    few, many = WordCounts(), WordCounts()
    few.add("a", "b", 1.0)
    for _ in range(3):
        many.add("a", "a", 0.0)
    both = few + many
    assert both.num_samples == 4
    assert both.figures.accuracy == 75  # The mean of the two accuracies would be 50.
    assert both.figures.one_minus_ned == 75
    assert both.figures.confidence == 25


def test_an_empty_set_is_zero_not_an_error() -> None:
    empty = WordCounts().figures
    assert (empty.accuracy, empty.one_minus_ned, empty.confidence, empty.label_length) == (0,) * 4
