"""`clipocr eval` of several students and `clipocr latency`, with real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import save_untrained
from click.testing import CliRunner, Result
from samples import write_words

from clipocr.cli import main


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)), prog_name="clipocr")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b, and the test sets SVT and CUTE80 in test."""
    place = tmp_path_factory.mktemp("place")
    for seed, name in enumerate("ab"):
        path = place / name / "best.pt"
        save_untrained(path, seed=seed, teacher="ViT-B-16/openai")
    write_words(place / "test" / "SVT", ["alpha", "Bravo"])
    write_words(place / "test" / "CUTE80_288", ["kilo"])
    return place


def test_one_run_leaves_figures_and_predictions(place: Path) -> None:
    result = invoke("eval", place / "a", "--data", place / "test")
    assert result.exit_code == 0, result.stderr
    assert "| total, plain mean of sets  |" in result.stdout
    assert "six benchmarks (7,248): no mean; not there: IIIT5k, IC13_857" in result.stderr
    assert "SVT has 2 samples that count, the published SVT has 647" in result.stderr
    record = json.loads((place / "a" / "eval.json").read_text())
    assert record["checkpoint"] == str(place / "a" / "best.pt")
    assert list(record["sets"]) == ["CUTE80_288", "SVT"]
    lines = (place / "a" / "eval.predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["kilo", "alpha", "Bravo"]


def test_several_runs_become_one_table(place: Path) -> None:
    checkpoint = place / "b" / "best.pt"
    result = invoke("eval", place / "a", checkpoint, "--data", place / "test")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"A: {place / 'a' / 'best.pt'}\nB: {checkpoint}\n")
    assert " only A / only B " in result.stdout
    assert (place / "a" / "eval.json").exists()
    # Another checkpoint of a run has figures of its own.
    assert (place / "b" / "best.eval.json").exists()
    assert (place / "b" / "best.eval.predictions.jsonl").exists()
    both = invoke("eval", place / "a", checkpoint, "--data", place / "test", "--json", "x.json")
    assert both.exit_code == 2
    assert "--json is the place of one RUN's figures" in both.stderr


def test_a_charset_that_a_student_cannot_write_is_said(place: Path) -> None:
    data = ("--data", place / "test", "--json", place / "94.json")
    result = invoke("eval", place / "a", *data, "--charset", "94")
    assert result.exit_code == 0, result.stderr
    assert (
        "was trained on charset 36 and cannot write 58 characters of test charset 94 (ABCDEFGH...)"
        in result.stderr
    )
    assert "cannot write" not in invoke("eval", place / "a", *data).stderr


def test_latency_is_a_table_of_batch_sizes(place: Path) -> None:
    args = ("--data", place / "test", "--images", 2, "--batch-sizes", "1,3")
    result = invoke("latency", place / "a", *args)
    assert result.exit_code == 0, result.stderr
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines() if "|" in line]
    assert rows[0] == "batch size"
    assert rows[2:] == ["1", "3"]
    result = invoke("latency", place / "a", *args[:2], "--batch-sizes", "1,x")
    assert result.exit_code == 2
    assert "Invalid value for '--batch-sizes': 'x' is not a valid integer" in result.stderr
