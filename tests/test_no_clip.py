"""Stage 2 needs the cache and nothing else: no CLIP, no LMDB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from clipocr.train.loop.checkpoint import load_checkpoint

BLOCKED = ("open_clip", "lmdb", "zarr")


def test_training_runs_where_clip_and_lmdb_cannot_be_imported(
    cache_path: Path, tmp_path: Path
) -> None:
    args = [
        *("train", "--cache", str(cache_path), "--out", str(tmp_path / "run")),
        *("--student", "tiny", "--image-taps", "1,2,3", "--text-taps", "1,2,3"),
        *("--epochs", "2", "--batch-size", "24", "--device", "cpu"),
    ]
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
        "from clipocr.cli import main\n"
        f"main({args!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 steps" in done.stdout
    assert load_checkpoint(tmp_path / "run" / "last.pt")["training"]["step"] == 6
