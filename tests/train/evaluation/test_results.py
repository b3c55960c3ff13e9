"""What an evaluation leaves, and several readers side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from oracle import Oracle, write_painted

from clipocr.shared.charset import Charset
from clipocr.shared.errors import UsageError
from clipocr.train.evaluation.evaluate import evaluate_sets
from clipocr.train.evaluation.paired import compare, compared, mcnemar_exact
from clipocr.train.evaluation.results import Evaluation
from clipocr.train.evaluation.test_sets import TestSet, open_test_sets
from clipocr.train.reading.readers import Reader

CHARSET = Charset.load("36")


def open_all(root: Path, max_label_length: int = 25) -> list[TestSet]:
    return open_test_sets([root], CHARSET, max_label_length)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """OST, whole: one word and three."""
    write_painted(tmp_path / "OST" / "heavy", ["a"])
    write_painted(tmp_path / "OST" / "weak", ["a", "bb", "c"])
    return tmp_path


def read(root: Path, answers: list[str], max_label_length: int = 25) -> Evaluation:
    return evaluate_sets(Reader(Oracle(answers)), open_all(root, max_label_length))


def test_both_means_are_labelled_as_what_they_are(root: Path) -> None:
    evaluation = read(root, ["x", "bb", "c"])
    rows = {row[0]: list(row[1:3]) for row in evaluation.results.rows}
    assert rows == {
        "OST/weak": ["3", "66.67"],
        "OST/heavy": ["1", "0.00"],
        "OST, weighted by samples": ["4", "50.00"],
        "OST, plain mean of sets": ["4", "33.33"],
        "total of 2 sets, weighted by samples": ["4", "50.00"],
        "total of 2 sets, plain mean of sets": ["4", "33.33"],
    }
    record = json.loads(json.dumps(evaluation.to_json()))
    assert record["sets"]["OST/weak"]["num_correct"] == 2
    assert record["sets"]["OST/weak"]["benchmark"] == "OST weak"
    assert record["means"]["OST"]["sets"] == ["OST/weak", "OST/heavy"]
    assert record["means"]["OST"]["weighted by samples"]["accuracy"] == 50
    assert record["means"]["OST"]["plain mean of sets"]["accuracy"] == pytest.approx(100 / 3)
    assert record["means"]["total"]["weighted by samples"]["1-NED"] == pytest.approx(50)


def test_the_mean_of_one_set_is_shown_once(tmp_path: Path) -> None:
    write_painted(tmp_path / "mine", ["a"])
    table = read(tmp_path, ["a"]).results
    assert [row[0] for row in table.rows] == ["mine", "total, weighted by samples"]


def test_predictions_are_a_line_a_sample(root: Path, tmp_path: Path) -> None:
    read(root, ["X", "bb", "c"]).write_predictions(tmp_path / "eval.json")
    path = tmp_path / "eval.predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["set"], line["image"], line["is_correct"]) for line in lines] == [
        ("OST/weak", 1, False),
        ("OST/weak", 2, True),
        ("OST/weak", 3, True),
        ("OST/heavy", 1, False),
    ]
    first = lines[0]
    assert (first["label"], first["text"], first["adapted_text"]) == ("a", "X", "x")
    assert first["character_confidence"] == pytest.approx([1, 1])
    assert "problem" not in first


def test_readers_side_by_side(tmp_path: Path) -> None:
    # Seven words, of which A reads the first and B the other six: p = 2 * (1 + 7) / 2 ** 7.
    write_painted(tmp_path / "mine", list("abcdefg"))
    first = read(tmp_path, ["a", *"xxxxxx"])
    second = read(tmp_path, ["x", *"bcdefg"])
    table = compare([first, second, first])
    assert mcnemar_exact(1, 6) == 0.125
    # What is called the same is numbered.
    assert list(table.headers) == [
        *("set", "samples", "Oracle"),
        *("Oracle (2)", "difference", "only first / only this", "p"),
        *("Oracle (3)", "difference", "only first / only this", "p"),
        *("1-NED Oracle", "1-NED Oracle (2)", "1-NED Oracle (3)"),
    ]
    assert [list(row) for row in table.rows] == [
        [
            *("mine", "7", "14.29"),
            *("85.71", "+71.43", "1 / 6", "0.1250"),
            *("14.29", "+0.00", "0 / 0", "1.0000"),
            # Of one character all or nothing is right.
            *("14.29", "85.71", "14.29"),
        ]
    ]
    assert "two-sided, not corrected for the number of comparisons: of 2 tests" in table.notes
    assert "differences to Oracle in points" in table.notes


def test_1_ned_is_that_of_the_samples_that_are_compared(tmp_path: Path) -> None:
    write_painted(tmp_path / "mine", ["abcd", "abc", "ab"])
    # Edits over the longer: 1/4, 0, 1 and 2/4, 1/3, 0; to the second, "abcd" is too long.
    first, second = read(tmp_path, ["abcx", "abc", "xy"]), read(tmp_path, ["ab", "abx", "ab"], 3)
    comparison = compared([first, second])
    (row,) = comparison.rows
    assert row.ones_minus_ned == pytest.approx((100 * (1 - 1 / 2), 100 * (1 - 1 / 6)))
    assert comparison.to_json() == [
        {
            "name": "mine",
            "num_samples": 2,
            "readers": {
                "Oracle": {"accuracy": 50, "1-NED": pytest.approx(50)},
                "Oracle (2)": {
                    "accuracy": 50,
                    "1-NED": pytest.approx(250 / 3),
                    "difference": 0,
                    "num_only_first": 1,
                    "num_only_this": 1,
                    "p": 1,
                },
            },
        }
    ]


def test_groups_pool_their_samples_and_plain_means_have_no_p_value(root: Path) -> None:
    table = compare([read(root, ["x", "bb", "c"]), read(root, ["a", "bb", "x"])])
    rows = {row[0]: list(row[1:]) for row in table.rows}
    # B gains the word of heavy and one of weak, and loses another of weak.
    both = ["50.00", "75.00"]
    assert rows["OST, weighted by samples"] == ["4", *both, "+25.00", "1 / 2", "1.0000", *both]
    both = ["33.33", "83.33"]
    assert rows["OST, plain mean of sets"] == ["4", *both, "+50.00", "", "", *both]


def test_only_samples_that_count_for_all_are_compared(root: Path) -> None:
    # To a reader of one character, "bb" is too long.
    table = compare([read(root, ["a", "bb", "c"]), read(root, ["a", "b", "c"], 1)])
    assert [list(row[:4]) for row in table.rows[:2]] == [
        ["OST/weak", "2", "100.00", "100.00"],
        ["OST/heavy", "1", "100.00", "100.00"],
    ]


def test_other_test_sets_cannot_be_compared(root: Path) -> None:
    whole = read(root, ["a", "b", "c"])
    with pytest.raises(UsageError, match="different test sets"):
        compare([whole, replace(whole, sets=whole.sets[:1])])
