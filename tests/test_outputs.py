"""Whatever the terminal and the names of files are, output is written, and leads to the files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import save_untrained
from forked import forked
from samples import TINY_TEACHER, draw_word, write_words

TAPS = ("--image-taps", "1,2,3", "--text-taps", "1,2,3")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_what_the_encoding_has_not_is_escaped(encoding: str, tmp_path: Path) -> None:
    write_words(tmp_path / "words", ["東", "é"])
    done = subprocess.run(
        [sys.executable, "-m", "clipocr", "data", "check", str(tmp_path), "--keep-unicode"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    shown = "東 1  é 1" if encoding == "utf-8" else "\\u6771 1  é 1"
    assert shown.encode(encoding) in done.stdout


def test_names_that_are_not_utf8_go_the_whole_way(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    data, cache, run = root / "data", root / os.fsdecode(b"c\xe8.cache"), root / "run"
    trained = tmp_path / "trained"
    pictures = root / "pictures"
    pictures.mkdir(parents=True)
    for word in ("one", "two"):
        (pictures / f"{word}.png").write_bytes(draw_word(word))
    (pictures / "gt.tsv").write_text("one.png\tone\ntwo.png\ttwo\n")
    name = pictures / os.fsdecode(b"na\xefve.png")
    name.write_bytes(draw_word("naive"))
    save_untrained(run / "best.pt")
    for command in (
        ("data", "import", pictures, data / os.fsdecode(b"s\xe9t")),
        ("data", "check", data),
        (
            *("cache", "build", "--data", data, "--out", cache, "--teacher", TINY_TEACHER, *TAPS),
            *("--unit-rows", 8, "--chunk-rows", 8, "--device", "cpu"),
        ),
        ("cache", "info", cache),
        (
            *("train", "--cache", cache, "--out", trained, "--student", "tiny", *TAPS),
            *("--epochs", 1, "--batch-size", 2, "--val-data", data, "--device", "cpu"),
        ),
        ("eval", run, "--data", root, "--report", root / "report"),
        ("read", run, pictures),
        ("export", run, "--format", "safetensors", "--out", tmp_path / "m.safetensors"),
    ):
        done = forked(*command)
        assert done.returncode == 0, (command, done.stderr)
        assert "Traceback" not in done.stderr
        if command[0] == "read":
            found = os.fsencode(done.stdout)
            assert os.fsencode(name) in found
            listed = "\n".join(line.split("\t")[0] for line in done.stdout.splitlines())
    for command in (
        ("train", "--cache", cache, "--out", root / "trained", "--student", "tiny", *TAPS),
        ("export", run, "--format", "safetensors", "--out", root / "m.safetensors"),
    ):
        done = forked(*command)
        assert done.returncode == 1
        assert "not UTF-8" in done.stderr
        assert "choose another --out" in done.stderr
    done = forked("read", run, "-", stdin=os.fsencode(listed))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\t") == 2 * 3
    assert os.fsdecode(name) in done.stdout
