"""What an exported student weighs and how long it takes, beside the same student in PyTorch.

    python benchmarks/export_speed.py RUN PICTURES

PICTURES is an LMDB or a folder of cropped words. Each works with one thread, the two take turns,
and what counts is the processor's time, the shortest of many: so what else the machine does counts
for little.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tabulate import tabulate

from clipocr.shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from clipocr.train.deploy.export import Run, export, given_views
from clipocr.train.loop.checkpoint import find_checkpoint, load_recogniser

BATCH_SIZES = (1, 32)
NUM_TURNS = 15


def open_onnx(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return lambda batch: session.run(None, {"images": batch})[0]


def main(run: Path, pictures: Path) -> None:
    torch.set_num_threads(1)
    student = load_recogniser(run, torch.device("cpu"))
    views = given_views(pictures, student)

    def in_pytorch(batch: np.ndarray) -> np.ndarray:
        images = normalize(torch.from_numpy(batch), STUDENT_MEAN, STUDENT_STD)
        return student.decode(images).softmax(dim=-1).numpy()

    runs: dict[str, Run] = {"PyTorch": in_pytorch}
    sizes = {"PyTorch": find_checkpoint(run).stat().st_size}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(run, "onnx", path, pictures=pictures)
        runs["ONNX"], sizes["ONNX"] = open_onnx(path), path.stat().st_size
        times = [best_times(runs, views[:n]) for n in BATCH_SIZES]
    rows = [
        [name, f"{sizes[name] / 1e6:.1f}", *(f"{1e3 * best[name]:.1f}" for best in times)]
        for name in runs
    ]
    headers = ["", "MB", *(f"ms, {n} at once" for n in BATCH_SIZES)]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    print(f"CPU time of one thread, best of {NUM_TURNS} turns")


def best_times(runs: dict[str, Run], batch: np.ndarray) -> dict[str, float]:
    """Return the shortest time of each in seconds; the first turn warms up and does not count."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(NUM_TURNS + 1):
        for name, run in runs.items():
            start = time.process_time()
            run(batch)
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
