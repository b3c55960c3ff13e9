"""Awkward rows, each with its remark, worked out by hand."""

from __future__ import annotations

import random
import string

import pytest
from nltk.metrics.distance import edit_distance

from clipocr.shared.charset import Charset
from clipocr.train.evaluation.metrics import WordCounts, plain_mean

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
    ("nai\u0308ve", "na\u00efve", 0, 2 / 6, "not normalised: two code points are not one"),
    ("🙂a", "🙃a", 0, 1 / 2, "one code point outside the basic plane"),
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


ADAPTED_ROWS = [
    # prediction, label, right under 36, 62, 94, remark
    ("It's", "its", 1, 0, 0, "case and punctuation go, case goes not, nothing goes"),
    ("its", "It's", 1, 0, 0, "and the other way round"),
    ("Its", "It's", 1, 1, 0, "only punctuation differs"),
    ("", "!?", 1, 1, 0, "nothing is left of the label: test sets leave such samples out"),
    ("!?", "!?", 1, 1, 1, "equal under all"),
    ("0O", "o0", 0, 0, 0, "a zero is no letter"),
    ("\u0130", "i", 1, 0, 0, "lower case of a dotted capital I is two code points, i and a dot"),
    ("\u212a", "k", 1, 0, 0, "the Kelvin sign is a k in lower case"),
    ("caf\u00e9", "caf", 1, 1, 1, "predictions are not folded to ASCII, only filtered"),
    ("a b", "ab", 1, 1, 1, "spaces are in none"),
]


@pytest.mark.parametrize(("prediction", "label", "in_36", "in_62", "in_94", "remark"), ADAPTED_ROWS)
def test_row_under_each_charset(
    prediction: str, label: str, in_36: int, in_62: int, in_94: int, remark: str
) -> None:
    for name, right in (("36", in_36), ("62", in_62), ("94", in_94)):
        charset, counts = Charset.load(name), WordCounts()
        counts.add(charset.adapt(prediction), charset.adapt(label), 1.0)
        assert counts.num_correct == right, (name, remark)


def test_edit_distance_is_that_of_parseq_s_library() -> None:
    rng = random.Random(0)
    alphabet = string.ascii_letters[:6] + "é東"
    for _ in range(300):
        prediction, label = ("".join(rng.choices(alphabet, k=rng.randrange(9))) for _ in "ab")
        counts = WordCounts()
        counts.add(prediction, label, 1.0)
        longer = max(len(prediction), len(label), 1)
        assert counts.sum_ned == pytest.approx(edit_distance(prediction, label) / longer)


def test_sets_add_up_by_samples_or_weigh_the_same() -> None:
    few, many = WordCounts(), WordCounts()
    few.add("a", "b", 1.0)
    for _ in range(3):
        many.add("aa", "aa", 0.0)
    by_samples, plain = (few + many).figures, plain_mean([few.figures, many.figures])
    assert by_samples.num_samples == plain.num_samples == 4
    assert (by_samples.accuracy, plain.accuracy) == (75, 50)
    assert (by_samples.one_minus_ned, plain.one_minus_ned) == (75, 50)
    assert (by_samples.confidence, plain.confidence) == (25, 50)
    assert (by_samples.label_length, plain.label_length) == (7 / 4, 3 / 2)


def test_an_empty_set_is_zero_not_an_error() -> None:
    empty = WordCounts().figures
    assert (empty.accuracy, empty.one_minus_ned, empty.confidence, empty.label_length) == (0,) * 4
