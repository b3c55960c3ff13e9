from __future__ import annotations

from dataclasses import replace

import pytest

from clipocr.train.reading.words import ReadWord
from clipocr.train.report.statistics import (
    NOTHING,
    Confusions,
    Rate,
    accuracy_by_length,
    edit_alignment,
    expected_error,
    kinds_of_error,
    reliability,
)


def sample(label: str, prediction: str, *confidence: float, problem: str | None = None):
    return ReadWord(
        image=1,
        set_name="A",
        label=label,
        adapted_label=label,
        text=prediction,
        adapted_text=prediction,
        character_confidence=confidence,
        size_px=(1, 1),
        problem=problem,
    )


@pytest.mark.parametrize(
    ("num_right", "num_samples", "expected"),
    [
        (8, 10, (49.02, 94.33)),  # Agresti and Coull, 1998: the score interval of 8 of 10.
        (0, 10, (0, 27.75)),
        (10, 10, (72.25, 100)),
        (500, 1000, (46.91, 53.09)),
    ],
)
def test_wilson_interval(num_right: int, num_samples: int, expected: tuple[float, float]) -> None:
    rate = Rate(num_right=num_right, num_samples=num_samples)
    assert rate.interval == pytest.approx(expected, abs=0.005)
    assert rate.interval[0] <= rate.percent <= rate.interval[1]


@pytest.mark.parametrize(
    ("label", "prediction", "expected"),
    [
        ("cat", "cat", ["cc", "aa", "tt"]),
        ("cat", "cut", ["cc", "au", "tt"]),
        ("cat", "ct", ["cc", "a", "tt"]),  # "a": read as nothing.
        ("", "x", [(NOTHING, "x")]),
        ("ab", "", ["a", "b"]),
        ("", "", []),
        ("house", "mouses", ["hm", "oo", "uu", "ss", "ee", (NOTHING, "s")]),
    ],
)
def test_alignment(label: str, prediction: str, expected: list[object]) -> None:
    pairs = [
        pair if pair[0] == NOTHING else "".join(pair) for pair in edit_alignment(label, prediction)
    ]
    assert pairs == expected


def test_accuracy_by_length_counts_every_sample_once() -> None:
    samples = [
        sample("cat", "cat", 1, 1, 1, 1),
        sample("dog", "dig", 1, 1, 1, 1),
        sample("a", "", problem="not an image"),
    ]
    assert accuracy_by_length(samples) == {
        1: Rate(num_right=0, num_samples=1),
        3: Rate(num_right=1, num_samples=2),
    }


def test_confusions_by_hand() -> None:
    confusions = Confusions(
        [
            sample("oo0", "o00"),  # o as o, o as 0, 0 as 0
            sample("o", ""),  # o left out
            sample("0", "0x"),  # x too many
            sample("zz", "", problem="not an image"),  # says nothing of z
        ]
    )
    assert confusions.by_character() == {
        "0": Rate(num_right=2, num_samples=2),
        "o": Rate(num_right=1, num_samples=3),
    }
    assert confusions.errors() == [(("", "x"), 1), (("o", ""), 1), (("o", "0"), 1)]
    assert confusions.errors("o") == [(("o", ""), 1), (("o", "0"), 1)]
    assert confusions.frequent_characters(9) == ["0", "o", "x"]
    assert confusions.frequent_characters(2) == ["0", "o"]
    assert confusions.num_of_label == {"0": 2, "o": 3, NOTHING: 1}


def test_reliability_by_hand() -> None:
    found = reliability(
        [
            sample("a", "a", 0.95, 1),
            sample("b", "c", 0.93, 1),
            sample("d", "d", 1, 1),  # 1 belongs to the last bin.
            sample("e", "f", 0.5, 0.5),
            sample("g", "", problem="not an image"),
        ]
    )
    assert [(some.low, some.rate.num_samples) for some in found] == [(0.2, 1), (0.9, 3)]
    assert found[1].mean_confidence == pytest.approx((0.95 + 0.93 + 1) / 3)
    # One word at 25 % that is wrong; three at 96 % of which two are right.
    assert expected_error(found) == pytest.approx((1 * 25 + 3 * abs(96 - 200 / 3)) / 4)


def test_reliability_of_nothing() -> None:
    assert expected_error(reliability([])) == 0


def test_reliability_of_a_reader_without_confidence_is_not_known() -> None:
    known = sample("a", "a", 1, 1)
    assert reliability([known, replace(known, character_confidence=None)]) is None


@pytest.mark.parametrize(
    ("label", "text", "kinds"),
    [
        ("word", "ward", ["one character off", "right length"]),
        ("word", "wor", ["one character off", "too short"]),
        ("word", "words", ["one character off", "too long"]),
        ("word", "", ["too short"]),
        ("word", "wrod", ["right length"]),
        ("word", "WorD", ["right length", "only upper or lower case"]),
    ],
)
def test_kinds_of_error(label: str, text: str, kinds: list[str]) -> None:
    assert kinds_of_error(label, text) == kinds
