"""What the stages of a recogniser corrected and spoiled, with answers that are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracle import Oracle, StagedOracle, painted, write_painted

from clipocr.shared.charset import Charset
from clipocr.train.evaluation.evaluate import evaluate_sets
from clipocr.train.evaluation.results import Evaluation
from clipocr.train.evaluation.stages import stage_table
from clipocr.train.evaluation.test_sets import open_test_sets
from clipocr.train.reading.readers import Reader

LABELS = ["Cat", "dog", "ab", "xyz", "no"]
STAGES = {
    "first": ["cat", "dig", "ab", "xy", "any"],
    "second": ["c-at", "dog", "a", "xyz", "any"],  # Corrects dog and xyz, spoils ab.
    "third": ["CAT", "dog", "b", "x", "any"],  # Spoils xyz.
}


def evaluate(recogniser: Oracle, root: Path, charset: str = "36") -> Evaluation:
    test_sets = open_test_sets([root], Charset.load(charset), 25)
    return evaluate_sets(Reader(recogniser, batch_size=2), test_sets)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five words, of which the last is broken."""
    write_painted(tmp_path / "data" / "mine", LABELS, broken=5)
    return tmp_path / "data"


def test_words_keep_what_earlier_stages_wrote_as_the_test_charset_has_it(root: Path) -> None:
    words = evaluate(StagedOracle(STAGES), root).words
    assert [word.text for word in words] == ["CAT", "dog", "b", "x", ""]
    assert words[0].drafts == {"first": "cat", "second": "cat"}
    assert list(words[0].drafts) == ["first", "second"]
    assert [word.drafts.get("second") for word in words[1:]] == ["dog", "a", "xyz", None]
    assert {word.stage for word in words[:4]} == {"third"}
    # The text and its probabilities are those of a recogniser that has the last stage alone.
    alone = evaluate(Oracle(STAGES["third"]), root).words
    assert [w.character_confidence for w in words] == [w.character_confidence for w in alone]
    assert evaluate(StagedOracle(STAGES), root, "94").words[0].drafts["second"] == "c-at"


def test_every_picture_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    num_passes, real = 0, StagedOracle.decode_stages

    def decode_stages(self: StagedOracle, images: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal num_passes
        num_passes += 1
        return real(self, images)

    monkeypatch.setattr(StagedOracle, "decode_stages", decode_stages)
    monkeypatch.delattr(Oracle, "decode")
    reader = Reader(StagedOracle(STAGES), batch_size=2)
    words = list(reader.read_all([painted(level) for level in range(4)]))
    assert num_passes == 2
    # Without a test charset drafts are as they were written.
    assert words[0].drafts == {"first": "cat", "second": "c-at"}
    assert words[0].to_json()["drafts"] == words[0].drafts


def test_counts_by_hand(root: Path) -> None:
    evaluation = evaluate(StagedOracle(STAGES), root)
    assert [list(row) for row in stage_table(evaluation.stages).rows] == [
        # Per word 1 - NED: 1, 2/3, 1, 2/3, 0; then 1, 1, 1/2, 1, 0; then 1, 1, 1/2, 1/3, 0.
        ["first", "40.00", "66.67", "", ""],
        ["second", "60.00", "70.00", "2", "1"],
        ["third", "40.00", "56.67", "1", "1"],
    ]
    record = json.loads(json.dumps(evaluation.to_json()))
    assert list(record["stages"]) == ["first", "second", "third"]
    assert record["stages"]["first"] == {
        "accuracy": 40,
        "1-NED": pytest.approx(200 / 3),
        "num_correct": 2,
        "num_corrected": None,
        "num_spoiled": None,
    }
    assert record["stages"]["second"]["num_corrected"] == 2
    total = record["means"]["total"]["weighted by samples"]
    assert record["stages"]["third"]["accuracy"] == total["accuracy"]
    assert record["stages"]["third"]["1-NED"] == total["1-NED"]


def test_files_of_a_recogniser_that_reads_once_know_no_stages(root: Path, tmp_path: Path) -> None:
    once, staged = Oracle(STAGES["third"]), StagedOracle(STAGES)
    lines = {}
    for name, recogniser in (("once", once), ("staged", staged)):
        evaluation = evaluate(recogniser, root)
        evaluation.write_predictions(tmp_path / f"{name}.json")
        file = tmp_path / f"{name}.predictions.jsonl"
        lines[name] = [json.loads(line) for line in file.read_text().splitlines()]
        assert bool(evaluation.stages) is ("stages" in evaluation.to_json()) is (name == "staged")
    drafts = [line.pop("drafts", None) for line in lines["staged"]]
    assert drafts[1] == {"first": "dig", "second": "dog"}
    assert drafts[4] is None  # It is broken.
    assert lines["staged"] == lines["once"]


def test_there_may_be_nothing_to_read(tmp_path: Path) -> None:
    write_painted(tmp_path / "mine", ["Cat"], broken=1)
    assert evaluate(StagedOracle(STAGES), tmp_path).stages == []
