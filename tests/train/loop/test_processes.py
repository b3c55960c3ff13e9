"""Several processes train what one would: gloo, the real command, and real torchrun once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import Forked, as_processes

from clipocr.train.loop.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

TRAIN = (
    "train --student tiny --image-taps 1,2,3 --text-taps 1,2,3 --batch-size 20 --epochs 2 "
    "--learning-rate 0.001 --device cpu"
).split()


def finish(*processes: Forked) -> None:
    for process in processes:
        done = process.finish()
        assert done.returncode == 0, done.stderr


def history(out: Path) -> list[dict[str, float]]:
    return json.loads((out / "run.json").read_text())["history"]


def test_two_processes_have_the_losses_and_weights_of_one(
    cache_path: Path, data_root: Path, tmp_path: Path
) -> None:
    """72 rows in batches of 20: the last has 12. With every relation gathered the loss is that of
    one process; sums of floats in another order are what is left to differ."""
    common = (*TRAIN, "--cache", cache_path, "--gather", "all", "--val-data", data_root)
    finish(
        Forked(*common, "--out", tmp_path / "one"),
        *as_processes(2, *common, "--out", tmp_path / "two"),
    )
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == len(two) == 2
    for a, b, tolerance in zip(one, two, (1e-4, 1e-3), strict=True):
        assert a.keys() == b.keys()
        assert {k: b[k] for k in a} == pytest.approx(a, rel=tolerance)
    weights = [
        load_checkpoint(tmp_path / name / "last.pt")["recogniser"] for name in ("one", "two")
    ]
    one_flat, two_flat = (torch.cat([t.flatten() for t in w.values()]) for w in weights)
    # AdamW divides by the size of a gradient, so where that is nearly 0 rounding decides its sign.
    differs = (one_flat - two_flat).abs() > 2e-4 + 2e-3 * one_flat.abs()
    assert differs.float().mean() < 1e-4
    torch.testing.assert_close(two_flat, one_flat, rtol=0, atol=2e-3)
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["processes"] == 2


def test_the_official_gathering_trains_too_and_stops_and_goes_on(
    cache_path: Path, tmp_path: Path
) -> None:
    common = (*TRAIN, "--cache", cache_path, "--batch-size", "8", "--epochs", "4")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    command = [*torchrun, "--nproc-per-node", "2", "-m", "clipocr", *map(str, common)]
    stopped = subprocess.Popen(
        [*command, "--out", str(tmp_path / "stopped")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 90
    while not list((tmp_path / "stopped").glob("events*")):
        assert time.monotonic() < deadline
        assert stopped.poll() is None, stopped.communicate()[1]
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode != 0
    assert "last.pt holds the run" in errors
    taken = load_checkpoint(tmp_path / "stopped" / "last.pt")["training"]["step"]
    assert 0 < taken < 4 * 9
    finish(
        *as_processes(2, "train", "--resume", tmp_path / "stopped"),
        *as_processes(2, *common, "--out", tmp_path / "whole"),
    )
    a, b = (load_checkpoint(tmp_path / name / "last.pt") for name in ("stopped", "whole"))
    for name, tensor in a["recogniser"].items():
        assert torch.equal(tensor, b["recogniser"][name]), name
