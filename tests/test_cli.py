"""The whole path by its commands, and what they say when something is wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from commands import invoke
from samples import WORDS, draw_word, write_words

from clipocr.train.loop.checkpoint import load_checkpoint

TAPS = ["--image-taps", "1,2,3", "--text-taps", "1,2,3"]
SMALL_UNITS = ["--unit-rows", "32", "--chunk-rows", "8"]


def build(data: Path, out: Path, *more: object) -> Result:
    teacher = ["--teacher", "ViT-tiny-test/random:0"]
    return invoke("cache", "build", "--data", data, "--out", out, *teacher, *TAPS, *SMALL_UNITS,
                  *more)  # fmt: skip


@pytest.fixture(scope="module")
def run_path(cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = invoke("train", "--cache", cache_path, "--out", out, "--student", "tiny", *TAPS,
                    "--epochs", 1, "--batch-size", 24)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return out


def test_from_words_to_a_reading_student(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS))
    data, cache, run = tmp_path / "data", tmp_path / "words.cache", tmp_path / "run"
    result = invoke("data", "render", data / "train.lmdb", "--words", words, "--count", 40)
    assert result.exit_code == 0, result.stderr

    result = build(data, cache)
    assert result.exit_code == 0, result.stderr
    assert "random weights" in result.stderr
    assert re.search(r"Wrote .*words.cache: 40 rows \(0 bad\) in 1 view, .* kB; 40 views built",
                     result.stdout)  # fmt: skip
    again = build(data, cache)
    assert again.exit_code == 0
    assert "nothing was missing" in again.stdout

    result = invoke("cache", "info", cache)
    assert result.exit_code == 0
    assert "RANDOM weights" in result.stdout
    assert "| image/view0/block1 |" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"{cache}: 40 of 40 rows built in 1 view")

    result = invoke("train", "--cache", cache, "--out", run, "--student", "tiny", *TAPS,
                    "--epochs", 2, "--batch-size", 20, "--val-data", data)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"Wrote {run / 'best.pt'}: 4 steps, loss ")
    assert "best accuracy" in result.stdout

    result = invoke("eval", run, "--data", data)
    assert result.exit_code == 0, result.stderr
    assert "| train.lmdb " in result.stdout
    assert "| total, weighted by samples |" in result.stdout
    figures = json.loads((run / "eval.json").read_text())
    assert figures["sets"]["train.lmdb"]["num_samples"] == 40
    assert figures["charset"] == "36"

    picture = tmp_path / "word.png"
    picture.write_bytes(draw_word("word"))
    result = invoke("read", run, picture, tmp_path / "none.png")
    assert result.exit_code == 1
    path, text, confidence = result.stdout.strip().split("\t")
    assert path == str(picture)
    assert text.isalnum() or text == ""
    assert 0 <= float(confidence) <= 1
    assert result.stderr.endswith("none.png: No such file or directory\n")


def test_eval_and_read_take_a_checkpoint_or_a_run(run_path: Path, data_root: Path) -> None:
    out = run_path.parent / "figures"
    results = [
        invoke("eval", path, "--data", data_root, "--out", out)
        for path in (run_path, run_path / "last.pt")
    ]
    tables = [result.stdout.split("Wrote")[0] for result in results]
    assert tables[0] == tables[1]
    assert "ST: 1 broken image counted as wrong" in results[0].stderr
    assert results[0].stdout.endswith(
        f"Wrote {out / 'run.eval.json'}: 2 test sets for {run_path / 'last.pt'}.\n"
    )


@pytest.mark.parametrize(
    ("args", "exit_code", "said"),
    [
        (["cache", "info", "{tmp}"], 1, "is not a feature cache .*clipocr cache build"),
        (["train", "--cache", "{tmp}", "--out", "{tmp}/r"], 1, "is not a feature cache"),
        (["train", "--cache", "{cache}", "--out", "{run}", "--image-taps", "1,2,3",
          "--text-taps", "1,2,3"], 1, "holds a run already"),
        (["train", "--cache", "{cache}", "--out", "{tmp}/r"], 1,
         "image arrays block1, .*, this run needs block3, block6, block9; pass --image-taps 1,2,3"),
        (["train", "--cache", "{cache}", "--out", "{tmp}/r", "--charset", "94", *TAPS], 1,
         "has text for charset 36 .*needs 94.*cache text .* --charset 94"),
        (["train", "--cache", "{cache}", "--out", "{tmp}/r", "--image-taps", "a"], 2,
         "'a' is not a valid integer"),
        (["train", "--cache", "{cache}", "--out", "{tmp}/r", "--epochs", "0"], 2,
         "0 is not in the range"),
        (["train", "--resume", "{tmp}"], 1, "no run to resume; begin one with: clipocr train"),
        (["train", "--resume", "{tmp}/r"], 2, "{tmp}/r' does not exist"),
        (["train", "--resume", "{run}", "--out", "{tmp}/r"], 2, "leave --out out"),
        (["train", "--config", "{cache}/manifest.json", "--out", "{tmp}/r"], 1,
         "is not the record of a run"),
        (["train", "--cache", "{cache}", "--out", "{tmp}/r", "--device", "cuda:9x"], 1, "device"),
        (["eval", "{tmp}", "--data", "{data}"], 1, "neither a checkpoint nor a run folder"),
        (["eval", "{run}", "--data", "{tmp}"], 1, "no LMDB .*no image folder .*data import"),
        (["eval", "{run}", "--data", "{tmp}/none"], 2, "does not exist"),
        (["eval", "{run}", "--data", "{data}", "--out", "{run}/last.pt/x"], 1,
         "Not a directory"),
        (["train", "--cache", "{cache}", "--out", "{cache}", *TAPS], 1, "is a feature cache"),
        (["train", "--cache", "{cache}", "--out", "{tmp}/r", *TAPS, "--val-data", "{tmp}"], 1,
         "no LMDB"),
        (["train", "--cache", "{cache}", "--out", "{tmp}/r", "--device", "meta"], 1,
         "'meta' is unknown; expected auto, cpu"),
        (["read", "{run}"], 2, "Missing argument 'IMAGE...'"),
        (["cache", "build", "--data", "{tmp}", "--out", "{tmp}/c"], 1, "no LMDB"),
        (["cache", "build", "--data", "{data}", "--out", "{tmp}/c", "--teacher", "x"], 1,
         "is not MODEL/WEIGHTS"),
        (["cache", "build", "--data", "{data}", "--out", "{tmp}/c", "--chunk-rows", "7"], 1,
         "unit rows 16384 is not a multiple of chunk rows 7"),
        (["cache", "build", "--data", "{data}", "--out", "{tmp}/c", "--codec", "zip"], 1,
         "'zip' is unknown; expected one of fp16"),
        (["cache", "build", "--data", "{data}", "--out", "{tmp}/c", "--charset", "no"], 1,
         "neither one of 36, 62, 94 nor"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_an_exit_code(
    args: list[str],
    exit_code: int,
    said: str,
    tmp_path: Path,
    cache_path: Path,
    run_path: Path,
    data_root: Path,
) -> None:
    places = {"tmp": tmp_path, "cache": cache_path, "run": run_path, "data": data_root}
    result = invoke(*(arg.format(**places) for arg in args))
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert re.search(said.replace("{tmp}", str(tmp_path)), result.stderr)
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")


def test_a_cache_that_cannot_be_written_is_one_line(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = build(data_root, tmp_path / "file" / "cache")
    assert result.exit_code == 1
    assert result.stderr.endswith("Error: " + str(tmp_path / "file/cache") + ": Not a directory\n")


def test_sigterm_saves_the_run_and_resume_finishes_it(cache_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = ["train", "--cache", cache_path, "--out", out, "--student", "tiny", *TAPS,
            "--epochs", "60", "--batch-size", "8", "--device", "cpu"]  # fmt: skip
    command = [sys.executable, "-m", "clipocr", *map(str, args)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("events.*")) or not (out / "last.pt").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"last.pt holds the run; go on with: clipocr train --resume {out}" in stderr
    assert stderr.splitlines()[-1] == "Stopped by SIGTERM."
    assert "Traceback" not in stderr
    refused = invoke("train", "--resume", out, "--epochs", 2)
    assert refused.exit_code == 1
    assert "epochs was 60, now 2" in refused.stderr


def test_a_killed_build_is_finished_by_the_same_command(tmp_path: Path) -> None:
    write_words(tmp_path / "data" / "set", WORDS * 3)
    assert build(tmp_path / "data", tmp_path / "whole").exit_code == 0
    assert build(tmp_path / "data", tmp_path / "cache").exit_code == 0
    # As if killed after its second unit's files but before the record.
    for name in ("sealed.json", "commits/view0/unit-00001.json"):
        (tmp_path / "cache" / name).unlink()
    half = invoke("cache", "info", tmp_path / "cache")
    assert re.search(r"^state +half built; the command that began it goes on", half.stdout, re.M)
    assert re.search(r"^view 0 +2 of 3 units, 58 of 90 rows$", half.stdout, re.M)
    result = build(tmp_path / "data", tmp_path / "cache")
    assert "32 views built" in result.stdout
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            other = tmp_path / "cache" / path.relative_to(tmp_path / "whole")
            assert other.read_bytes() == path.read_bytes(), path


def test_another_script_and_longer_labels_go_the_whole_way(tmp_path: Path) -> None:
    words = ["άλφα", "βήτα", "γάμμα", "δέλτα", "έψιλον", "ζήτα" * 8, "ήτα", "θήτα"]
    write_words(tmp_path / "data" / "greek", words)
    charset = tmp_path / "greek.txt"
    charset.write_text("".join(sorted(set("".join(words)))), encoding="utf-8")
    cache, run, data = tmp_path / "greek.cache", tmp_path / "run", tmp_path / "data"
    same = ("--charset", charset, "--max-label-length", 32)
    result = build(data, cache, *same, "--keep-unicode")
    assert result.exit_code == 0, result.stderr
    result = invoke("train", "--cache", cache, "--out", run, "--student", "tiny", *TAPS, *same,
                    "--epochs", 2, "--batch-size", 8)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    result = invoke("eval", run, "--data", data, "--charset", charset)
    assert result.exit_code == 0, result.stderr
    figures = json.loads((run / "eval.json").read_text())["sets"]["greek"]
    # All eight count, the one of 32 characters and those with accents too.
    assert (figures["num_samples"], figures["num_unlabelled"]) == (8, 0)
    weights = load_checkpoint(run / "last.pt")["recogniser"]
    assert weights["decoder.positions"].shape[1] == 33
    assert weights["decoder.head.weight"].shape[0] == len(charset.read_text("utf-8")) + 1
    result = invoke("train", "--cache", cache, "--out", tmp_path / "other", *TAPS,
                    "--charset", charset, "--max-label-length", 40)  # fmt: skip
    assert result.exit_code == 1
    assert "holds labels of up to 32 characters, this run needs 40" in result.stderr


def test_a_table_of_one_s_own(cache_path: Path, data_root: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text(
        'title = "Learning rates"\ncolumns = ["peak"]\n'
        "[settings]\nimage_taps = [1, 2, 3]\ntext_taps = [1, 2, 3]\nbatch_size = 36\n"
        '[[variants]]\nname = "low"\ncells = ["1e-4"]\nsettings = { learning_rate = 1e-4 }\n'
        '[[variants]]\nname = "high"\ncells = ["1e-3"]\nsettings = { learning_rate = 1e-3 }\n'
    )
    command = ("ablate", table, "--cache", cache_path, "--out", tmp_path / "out", "--data",
               data_root, "--seeds", "0", "--set", "student=tiny", "--set", "epochs=1")  # fmt: skip
    planned = invoke(*command, "--dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "learning_rate=0.0001" in planned.stdout
    assert planned.stdout.splitlines()[-1] == (
        "2 runs: 2 to train, 0 to go on with, 0 to evaluate, 0 finished. Nothing was written."
    )
    assert not (tmp_path / "out").exists()
    half = invoke(*command, "--only", "1/2")
    assert half.exit_code == 0, half.stderr
    assert half.stdout.splitlines()[-1].endswith("1 of 2 runs finished.")
    done = invoke(*command)
    assert done.exit_code == 0, done.stderr
    assert "run 2 of 2: high-seed0" in done.stderr + done.stdout
    assert "**Learning rates**" in done.stdout
    assert "| peak   |" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("2 of 2 runs finished.")
    assert (tmp_path / "out" / "table.png").read_bytes().startswith(b"\x89PNG")
    for wrong, said in (
        (("--set", "epochs"), "'epochs' is not NAME=VALUE"),
        (("--only", "3/2"), "'3/2' is not I/N with I from 1 to N"),
        (("--only", "0/2"), "'0/2' is not I/N"),
        (("--seeds", "a"), "'a' is not a valid integer"),
    ):
        refused = invoke(*command, *wrong)
        assert refused.exit_code == 2
        assert said in refused.stderr
    unknown = invoke(*command, "--set", "epoch=1")
    assert unknown.exit_code == 1
    assert "unknown setting 'epoch'; expected some of accumulate" in unknown.stderr
