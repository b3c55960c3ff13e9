"""What other programs read, from a file: through the same protocol, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from oracle import Oracle, painted, write_painted

import clipocr
from clipocr.shared.charset import Charset
from clipocr.shared.errors import DataError
from clipocr.train.evaluation.evaluate import evaluate_charsets, evaluate_sets
from clipocr.train.evaluation.predictions import RecordedReader
from clipocr.train.evaluation.results import Evaluation
from clipocr.train.evaluation.test_sets import open_test_sets
from clipocr.train.reading.readers import Reader

WORDS = ["House", "tree", "Cat!", "???", "dog"]
TSV = """\
set\timage\ttext
SVT\t1\thOUSE
SVT\timage-000000002\ttrees
SVT\t3\tcat
SVT\t4\tnobody asks
SVT\t5\tdog
mine\twords/0.png\tzero
mine\t./words/1.png\tONE
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """SVT of five words, of which "???" has no label under charset 36 and "dog" no picture; a
    folder of two."""
    write_painted(tmp_path / "data" / "test" / "SVT", WORDS, broken=5)
    folder = tmp_path / "data" / "mine"
    (folder / "words").mkdir(parents=True)
    for i in range(2):
        (folder / "words" / f"{i}.png").write_bytes(painted(i))
    (folder / "gt.tsv").write_text("words/0.png\tzero\nwords/1.png\tone\n")
    return tmp_path / "data"


def evaluate(file: Path, data: Path, charset: str = "36") -> Evaluation:
    sets = open_test_sets([data], Charset.load(charset), 25)
    return evaluate_sets(RecordedReader(file), sets)


def test_lines_of_tabs_go_through_the_same_protocol(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "theirs.tsv"
    file.write_text(TSV)
    evaluation = evaluate(file, data)
    # House = hOUSE and Cat! = cat under charset 36; tree is not trees. The dog is read, but its
    # picture cannot be decoded, which counts as wrong for everybody. SVT is test/SVT here.
    assert [(w.image, w.text, w.is_correct) for w in evaluation.sets[0].words] == [
        (1, "hOUSE", True),
        (2, "trees", False),
        (3, "cat", True),
        (5, "", False),
    ]
    assert {name: f.accuracy for name, f in evaluation.figures.items()} == {
        "test/SVT": 50,
        "mine": 100,
    }
    assert evaluation.to_json()["reader"] == str(file)
    by_name = clipocr.evaluate(file, data)
    assert by_name.words == evaluation.words
    # Without the line of names it is the same.
    file.write_text(TSV.partition("\n")[2].replace("\n", "\r\n"))
    assert evaluate(file, data).words == evaluation.words


def test_confidence_is_of_the_word(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "theirs.tsv"
    lines = TSV.splitlines()[1:]
    file.write_text("\n".join(f"{line}\t0.{i + 5}" for i, line in enumerate(lines)))
    evaluation = evaluate(file, data)
    # 0.5, 0.6, 0.7, and 0 for the picture that cannot be decoded.
    assert evaluation.figures["test/SVT"].confidence == pytest.approx(100 * 1.8 / 4)
    assert evaluation.words[0].character_confidence is None
    # The file writes some words without it: then it is unknown.
    file.write_text(file.read_text().replace("\t0.5", ""))
    assert evaluate(file, data).figures["test/SVT"].confidence is None


def test_what_eval_wrote_is_read_as_it_is(data: Path, tmp_path: Path) -> None:
    sets = open_test_sets([data], Charset.load("36"), 25)
    ours = evaluate_sets(Reader(Oracle(["house", "tree", "bat", "x", "dog"])), sets)
    ours.write_predictions(tmp_path / "eval.json")
    again = evaluate(tmp_path / "eval.predictions.jsonl", data)
    assert [(w.text, w.is_correct) for w in again.words] == [
        (w.text, w.is_correct) for w in ours.words
    ]
    assert again.figures == ours.figures
    assert again.to_json()["sets"] == ours.to_json()["sets"]
    page = again.report(tmp_path / "report", ours).read_text(encoding="utf-8")
    assert "a file of predictions" in page


def test_another_charset_needs_the_words_that_only_it_has(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    rows = [line.split("\t") for line in TSV.splitlines()[1:]]
    named = [dict(zip(("set", "image", "text"), row, strict=True)) for row in rows]
    file.write_text("\n".join(map(json.dumps, named)))
    charsets = [Charset.load(name) for name in ("36", "94")]
    of_charsets = [open_test_sets([data], charset, 25) for charset in charsets]
    both = evaluate_charsets(RecordedReader(file), of_charsets)
    assert [each.counts.num_samples for each in both] == [6, 7]
    file.write_text("\n".join(map(json.dumps, (row for row in named if row["image"] != "4"))))
    assert evaluate(file, data).counts.num_samples == 6
    with pytest.raises(DataError, match=r"no row for 1 sample \(test/SVT 4\); expected"):
        evaluate_charsets(RecordedReader(file), of_charsets)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "SVT\t1\ta\n", r"a.tsv has no row for 5 samples \(test/SVT 2, test/SVT 3, "
         r"test/SVT 5, \.\.\.\); expected one for every sample of test/SVT, mine"),
        ("a.tsv", f"{TSV}SVT\t6\ta\nmine\tno.png\ta\nIIIT5k\t1\ta\nSVT\tx\ta\n",
         r"has 4 rows of no sample \(SVT 6, mine no.png, IIIT5k 1, \.\.\.\)"),
        ("a.tsv", f"{TSV}SVT\t1\ta\n", "a.tsv: SVT 1 is there twice, the second time in line 9"),
        ("a.tsv", "SVT 1 a\n", "line 1 has 1 field, expected set<TAB>image<TAB>text"),
        ("a.tsv", "SVT\t1\ta\tsure\n", "SVT 1: confidence is 'sure', expected a number from 0"),
        ("a.tsv", "SVT\t1\ta\t1.5\n", "confidence is '1.5', expected a number from 0 to 1"),
        ("a.tsv", "", "a.tsv holds no predictions"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", '{"set": "SVT", "image": 1}', "expected an object with set, image, text"),
        ("a.jsonl", '{"set": "SVT", "image": 1, "text": 3}', "SVT 1: text is 3, expected a text"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    name: str, text: str, said: str, data: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said) as e:
        evaluate(tmp_path / name, data)
    assert "\n" not in str(e.value)


def test_what_is_not_utf8_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"SVT\t1\tcaf\xe9\n")
    with pytest.raises(DataError, match=r"a.tsv is not UTF-8 \(byte 9\)"):
        RecordedReader(tmp_path / "a.tsv")
