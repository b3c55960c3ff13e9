"""`clipocr eval` of several students and `clipocr latency`, with real checkpoints."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
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
    assert result.stdout.startswith(f"a: {place / 'a' / 'best.pt'}\n\n| set ")
    assert "| total of 2 sets, plain mean of sets  |" in result.stdout
    assert "six benchmarks (7,248): no mean; not there: IIIT5k, IC13_857" in result.stderr
    assert "SVT has 2 samples that count, the published SVT has 647" in result.stderr
    record = json.loads((place / "a" / "eval.json").read_text())
    assert record["checkpoint"] == str(place / "a" / "best.pt")
    assert list(record["sets"]) == ["SVT", "CUTE80_288"]
    lines = (place / "a" / "eval.predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["alpha", "Bravo", "kilo"]


def test_several_runs_become_one_table(place: Path) -> None:
    checkpoint = place / "b" / "best.pt"
    result = invoke("eval", place / "a", checkpoint, "--data", place / "test")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"a: {place / 'a' / 'best.pt'}\nb: {checkpoint}\n\n| set ")
    headers = [cell.strip() for cell in result.stdout.splitlines()[3].split("|")[1:-1]]
    assert headers == [
        *("set", "samples", "a", "b", "difference", "only first / only this", "p"),
        *("1-NED a", "1-NED b"),
    ]
    assert (place / "a" / "eval.json").exists()
    # Another checkpoint of a run has figures of its own.
    assert (place / "b" / "best.eval.json").exists()
    assert (place / "b" / "best.eval.predictions.jsonl").exists()


def test_figures_may_be_written_elsewhere(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "b", tmp_path / "a")
    out = ("--out", tmp_path / "out")
    result = invoke("eval", place / "a", tmp_path / "a", "--data", place / "test", *out)
    assert result.exit_code == 0, result.stderr
    # Two runs of one name are told apart by the folders above them.
    names = [f"{folder.name}-a" for folder in (place, tmp_path)]
    expected = [f"{n}.eval.{end}" for n in names for end in ("json", "predictions.jsonl")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)
    assert not (tmp_path / "a" / "eval.json").exists()


def test_a_charset_that_a_student_cannot_write_is_said(place: Path, tmp_path: Path) -> None:
    data = ("--data", place / "test", "--out", tmp_path)
    result = invoke("eval", place / "a", *data, "--charset", "94")
    assert result.exit_code == 0, result.stderr
    assert (
        "was trained on charset 36 and cannot write 58 characters of test charset 94 (ABCDEFGH...)"
        in result.stderr
    )
    assert "cannot write" not in invoke("eval", place / "a", *data).stderr


def test_several_charsets_have_a_table_each_and_files_each(place: Path, tmp_path: Path) -> None:
    data = ("--data", place / "test", "--out", tmp_path)
    report = ("--report", tmp_path / "report")
    result = invoke("eval", place / "a", *data, "--charset", "36,62,94", *report)
    assert result.exit_code == 0, result.stderr
    titles = [line for line in result.stdout.splitlines() if line.startswith("Test charset")]
    assert titles == ["Test charset 36", "Test charset 62", "Test charset 94"]
    records = {
        name: json.loads((tmp_path / f"a.eval.{name}").read_text())
        for name in ("json", "62.json", "94.json")
    }
    assert [record["charset"] for record in records.values()] == ["36", "62", "94"]
    assert (tmp_path / "a.eval.62.predictions.jsonl").exists()
    assert (tmp_path / "report" / "index.html").exists()
    assert "94 (94 characters)" in (tmp_path / "report" / "94" / "index.html").read_text()
    for charsets, said in (("36,36", "36, 36"), ("none", "none")):
        twice = invoke("eval", place / "a", *data, "--charset", charsets)
        assert twice.exit_code == 1
        assert f"charsets are {said}; expected one or more, of different names" in twice.stderr


def test_predictions_beside_a_run(place: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.tsv"
    theirs.write_text("SVT\t1\talpha\nSVT\t2\tbravo\nCUTE80_288\t1\tkilos\n")
    data = ("--data", place / "test", "--out", tmp_path / "out")
    result = invoke("eval", place / "a", "--predictions", theirs, *data)
    assert result.exit_code == 0, result.stderr
    # An untrained student reads no word; theirs two of three.
    rows = [[c.strip() for c in r.split("|")[1:-1]] for r in result.stdout.splitlines() if "|" in r]
    assert rows[0][2:4] == ["a", "theirs"]
    assert rows[2][:7] == ["SVT", "2", "0.00", "100.00", "+100.00", "0 / 2", "0.5000"]
    assert rows[4][3] == "66.67"
    assert (tmp_path / "out" / "theirs.eval.json").exists()
    alone = invoke("eval", "--predictions", theirs, *data)
    assert alone.exit_code == 0, alone.stderr
    assert f"theirs: {theirs}\n" in alone.stdout
    none = invoke("eval", *data)
    assert none.exit_code == 2
    assert "expected a RUN-OR-CHECKPOINT, or --predictions FILE" in none.stderr
    # What is wrong with predictions is said before a run is read.
    theirs.write_text("SVT\t1\talpha\n")
    wrong = invoke("eval", place / "a", "--predictions", theirs, *data)
    assert wrong.exit_code == 1
    assert "no row for 2 samples (SVT 2, CUTE80_288 1)" in wrong.stderr
    assert wrong.stderr.startswith("Error: ")


def test_stdout_is_a_table_for_programs_if_asked(place: Path, tmp_path: Path) -> None:
    both = ("eval", place / "a", place / "b", "--data", place / "test", "--out", tmp_path)
    as_csv = invoke(*both, "--format", "csv")
    rows = list(csv.reader(as_csv.stdout.splitlines()))
    assert rows[0][:4] == ["set", "samples", "a", "b"]
    assert [row[0] for row in rows[1:3]] == ["SVT", "CUTE80_288"]
    assert "Wrote " in as_csv.stderr
    assert "McNemar's exact test" in as_csv.stderr
    as_latex = invoke(*both, "--format", "latex")
    assert as_latex.stdout.startswith("% Word accuracy and 1-NED")
    assert r"\begin{tabular}{lrrrrrrrr}" in as_latex.stdout
    assert "CUTE80\\_288" in as_latex.stdout
    assert as_latex.stdout.endswith("\\end{tabular}\n")


def test_json_is_all_figures_on_stdout(place: Path, tmp_path: Path) -> None:
    both = ("eval", place / "a", place / "b", "--data", place / "test", "--out", tmp_path)
    result = invoke(*both, "--json", "--charset", "36,94")
    of_36, of_94 = json.loads(result.stdout)
    assert (of_36["charset"], of_94["charset"]) == ("36", "94")
    assert of_36["readers"]["b"] == json.loads((tmp_path / "b.eval.json").read_text())
    assert of_36["comparison"][0]["readers"]["b"].keys() >= {"accuracy", "1-NED", "p"}
    alone = json.loads(invoke("eval", place / "a", *both[3:], "--json").stdout)
    assert [*alone[0]] == ["charset", "readers"]
    refused = invoke(*both, "--json", "--format", "csv")
    assert refused.exit_code == 1
    assert "--json prints no tables; leave it or --format csv out" in refused.stderr


def test_a_checkpoint_says_when_it_was_written(place: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(place / "a" / "best.pt", weights_only=True)
    checkpoint["training"] = {"step": 1200, "history": [{}, {}, {}]}
    torch.save(checkpoint, tmp_path / "last.pt")
    data = ("--data", place / "test", "--out", tmp_path / "out")
    result = invoke("eval", tmp_path / "last.pt", *data)
    assert f": {tmp_path / 'last.pt'}, epoch 3, step 1,200\n" in result.stdout
    (figures,) = (tmp_path / "out").glob("*.json")
    assert json.loads(figures.read_text())["moment"] == {"epoch": 3, "step": 1200}
    reached = {"step": 800, "epoch": 2, "epochs": 5, "accuracy": 91.25}
    checkpoint |= {"training": None, "reached": reached}
    torch.save(checkpoint, tmp_path / "best.pt")
    result = invoke("eval", tmp_path / "best.pt", *data)
    assert "best.pt, epoch 2, step 800, validation accuracy 91.25 %\n" in result.stdout


def test_places_of_clip_are_one_or_one_for_each(place: Path) -> None:
    runs = ("eval", place / "a", place / "b", "--data", place / "test")
    result = invoke(*runs, "--clip", "x,y,z")
    assert result.exit_code == 2
    assert "--clip names 3 places for 2 RUNs; expected one for all of them, or one" in result.stderr
    for clip in ("x", "x,y"):
        result = invoke(*runs, "--clip", clip)
        assert result.exit_code == 2
        assert f"--clip {clip}: these RUNs read without CLIP; leave it out" in result.stderr


def test_latency_is_a_table_of_models_and_batch_sizes(place: Path) -> None:
    args = ("--data", place / "test", "--images", 2, "--batch-sizes", "1,3")
    result = invoke("latency", place / "a", place / "b", *args)
    assert result.exit_code == 0, result.stderr
    rows = [[c.strip() for c in r.split("|")[1:-1]] for r in result.stdout.splitlines() if "|" in r]
    assert rows[0] == ["model", "parameters", "GMACs", "batch size", "preprocessing", "reading",
                       "together", "images/s"]  # fmt: skip
    assert [(row[0], row[3]) for row in rows[2:]] == [
        ("a", "1"), ("a", "3"), ("b", "1"), ("b", "3"),
    ]  # fmt: skip
    args = (*args[:4], "--batch-sizes", "1")
    record = json.loads(invoke("latency", place / "a", *args, "--json").stdout)
    assert [row["batch_size"] for row in record["rows"]] == [1]
    assert record["num_images"] == 2
    result = invoke("latency", place / "a", *args[:2], "--batch-sizes", "1,x")
    assert result.exit_code == 2
    assert "Invalid value for '--batch-sizes': 'x' is not a valid integer" in result.stderr
