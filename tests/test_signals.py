"""Signals reach every process of a command, as a terminal or a scheduler sends them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import TINY_CLI, WORDS, write_words


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_build_with_workers_ends_in_one_line(number: int, tmp_path: Path) -> None:
    write_words(tmp_path / "data", WORDS * 8)
    command = [
        *(sys.executable, str(TINY_CLI), "cache", "build", "--data", str(tmp_path / "data")),
        *("--out", str(tmp_path / "cache"), "--teacher", "ViT-tiny-test/random:0"),
        *("--image-taps", "1,2,3", "--text-taps", "1,2,3", "--unit-rows", "8"),
        *("--chunk-rows", "8", "--device", "cpu", "--workers", "3"),
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as build:
        assert build.stderr is not None
        # The workers are started after it.
        while not (tmp_path / "cache" / "manifest.json").exists():
            assert build.poll() is None, build.stderr.read()
            time.sleep(0.05)
        os.killpg(build.pid, number)
        errors = build.stderr.read()
    assert build.returncode == 128 + number
    assert "Traceback" not in errors
    said = "Interrupted." if number == signal.SIGINT else "Stopped by SIGUSR1."
    # In the middle of an import it ends at once, and a bar may then stand before it on its line.
    assert re.search(rf"{said}( The same command goes on where it stopped\.)?$", errors.rstrip())
    assert errors.count(said) == 1
