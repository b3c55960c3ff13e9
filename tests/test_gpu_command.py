"""`make gpu` in miniature on a CPU: on a GPU nothing but the GPU is new to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(tmp_path: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "gpu.run", "--small", "--minutes", "0.05",
            "--work", tmp_path / "work", "--results", tmp_path / "out", *map(str, args),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *sys.path])},
        capture_output=True,
        text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            "1,2,3",
            ("| int4    | 0.0e+00", "| builder            |", "waits in three steps: passed"),
        ),
        ("4", ("cached, not compiled: passed",)),
        ("5", ("| plain     |", "reader-plain.safetensors")),
    ],
)
def test_every_part_passes(tmp_path: Path, parts: str, said: tuple[str, ...]) -> None:
    done = run(tmp_path, "--device", "cpu", "--parts", parts)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    page = (tmp_path / "out" / "GPU.md").read_text()
    for text in said:
        assert text in page
    assert "**failed**" not in page
    assert "Sizes are miniature" in page


def test_a_part_that_fails_stops_no_other_and_is_on_the_page(tmp_path: Path) -> None:
    """Here both do, because no GPU is shown to them."""
    done = run(tmp_path, "--device", "cuda", "--parts", "2,3")
    assert done.returncode == 1
    for part in (2, 3):
        assert f"FAILED part {part}, the whole part: ended with 1 before it was through" in (
            done.stderr
        )
    assert "Wrote" in done.stdout
    assert ": 0 of 2 checks passed." in done.stdout
    page = (tmp_path / "out" / "GPU.md").read_text()
    assert page.count("**failed**") == 2
    assert "## 3. Building a cache" in page
