"""`clipocr.evaluate`: runs, loaded readers, and functions that know nothing of clipocr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_untrained
from oracle import Oracle, write_painted
from PIL import Image

import clipocr
from clipocr.shared.errors import CheckpointError, DataError, UsageError
from clipocr.train.reading.readers import Reader

WORDS = ["House", "tree", "Cat!", "???", "dog"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five words, of which "???" has no label under charset 36 and "dog" no picture."""
    write_painted(tmp_path / "data" / "SVT", WORDS, broken=5)
    return tmp_path / "data"


class TheirModel:
    """Reads the red level of a picture, as `painted` made it, and remembers what it was given."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers
        self.batches: list[int] = []

    def __call__(self, pictures: list[Image.Image]) -> list[str]:
        assert all(picture.size == (50, 20) and picture.mode == "RGB" for picture in pictures)
        self.batches.append(len(pictures))
        return [self.answers[picture.getpixel((0, 0))[0]] for picture in pictures]


def test_a_function_is_measured_by_the_same_protocol(data: Path) -> None:
    model = TheirModel(["hOUSE", "trees", "cat"])
    evaluation = clipocr.evaluate(model, data, batch_size=2)
    # The picture that is broken is wrong without being read, and so is nobody's label.
    assert model.batches == [2, 1]
    assert [(word.text, word.problem) for word in evaluation.words] == [
        ("hOUSE", None),
        ("trees", None),
        ("cat", None),
        ("", "not an image"),
    ]
    figures = evaluation.figures["SVT"]
    assert (figures.num_samples, figures.accuracy, figures.confidence) == (4, 50, None)
    assert figures == clipocr.evaluate(model, [data]).means["total"].weighted
    assert evaluation.table().splitlines()[2] == (
        "| SVT                        |         4 |      50.00 |   70.00 |            - |"
        "           3.25 |"
    )
    assert any(
        "1 broken image counted as wrong, 1 sample left out" in r for r in evaluation.remarks
    )
    record = json.loads(json.dumps(evaluation.to_json()))
    assert record["reader"] == "TheirModel"
    assert record["sets"]["SVT"]["confidence"] is None
    assert record["remarks"] == evaluation.remarks


def test_a_function_beside_a_recogniser(data: Path, tmp_path: Path) -> None:
    answers = ["house", "tree", "bat"]
    ours = clipocr.evaluate(Reader(Oracle(answers, "36")), data)
    theirs = clipocr.evaluate(TheirModel(["house", "x", "cat"]), data, name="theirs")
    assert ours.figures["SVT"].accuracy == theirs.figures["SVT"].accuracy == 50
    header, _, row = (line.split("|")[1:-1] for line in ours.table(theirs).splitlines()[:3])
    assert [cell.strip() for cell in header[2:4]] == ["Oracle", "theirs"]
    assert [cell.strip() for cell in row[:6]] == ["SVT", "4", "50.00", "50.00", "+0.00", "1 / 1"]
    assert "hOUSE" not in repr(ours)  # Thousands of words would fill a notebook.
    page = theirs.report(tmp_path / "report", ours).read_text(encoding="utf-8")
    assert "theirs and Oracle" in page
    write_painted(tmp_path / "more" / "CUTE80", ["a"])
    others = clipocr.evaluate(TheirModel(answers), tmp_path / "more")
    with pytest.raises(UsageError, match="different test sets"):
        ours.table(others)


def test_a_run_and_a_loaded_reader_give_the_same(data: Path, tmp_path: Path) -> None:
    save_untrained(tmp_path / "best.pt")
    by_path = clipocr.evaluate(tmp_path, data, batch_size=2)
    reader = clipocr.load(tmp_path, batch_size=2)
    by_reader = clipocr.evaluate(reader, str(data))
    assert by_path.words == by_reader.words
    assert by_path.to_json() == by_reader.to_json()
    assert by_path.to_json()["checkpoint"] == str(tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        clipocr.evaluate(tmp_path / "none", data)


def test_longer_labels_than_25_do_not_count(tmp_path: Path) -> None:
    write_painted(tmp_path / "long", ["a", "b" * 26])
    model = TheirModel(["a", "b" * 26])
    assert clipocr.evaluate(model, tmp_path).counts.num_samples == 1


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (["a", "b"], r"theirs returned \['a', 'b'\] for 3 pictures; expected a list with one str"),
        ([], r"returned \[\] for 3 pictures"),
        ("abc", "returned 'abc' for 3 pictures"),
        (None, "returned None for 3 pictures"),
        (["a", ("b", 0.9), "c"], r"returned \['a', \('b', 0.9\), 'c'\] for 3 pictures"),
        ([b"a", b"b", b"c"], r"returned \[b'a'"),
    ],
)
def test_what_is_not_one_text_per_picture_is_one_error(
    returned: object, said: str, data: Path
) -> None:
    def theirs(pictures: list[Image.Image]) -> Any:
        del pictures
        return returned

    with pytest.raises(UsageError, match=said):
        clipocr.evaluate(theirs, data)


def test_texts_may_come_in_anything_that_can_be_gone_through(data: Path) -> None:
    functions: list[Callable[[list[Image.Image]], Any]] = [
        lambda pictures: ("house" for _ in pictures),
        lambda pictures: ("house",) * len(pictures),
    ]
    for function in functions:
        assert clipocr.evaluate(function, data).figures["SVT"].accuracy == 25


def test_a_failure_of_the_function_is_its_own(data: Path) -> None:
    def fails(pictures: list[Image.Image]) -> list[str]:
        raise ZeroDivisionError(str(len(pictures)))

    with pytest.raises(ZeroDivisionError, match="3"):
        clipocr.evaluate(fails, data)


@pytest.mark.parametrize(
    ("reader", "options", "said"),
    [
        (7, {}, "reader is a int; expected a run folder"),
        (TheirModel([]), {"batch_size": 0}, "batch_size is 0"),
        (TheirModel([]), {"charset": "37"}, "37"),
    ],
)
def test_what_does_not_fit_is_said(
    reader: object, options: dict[str, object], said: str, data: Path
) -> None:
    with pytest.raises((UsageError, DataError), match=said):
        clipocr.evaluate(reader, data, **options)
