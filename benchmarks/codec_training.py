"""What a codec costs in accuracy: the same small students, trained from caches that differ by it.

    make demo                                          # renders words to train and to test on
    python benchmarks/small_clip.py small_clip.pt --data .demo/data/train --minutes 20
    python benchmarks/codec_training.py .codecs --data .demo/data --teacher small_clip.pt

Every run is one of `clipocr ablate`, so this may be killed and repeated. Only image features are
followed, for text features are not encoded. Students of one seed begin alike and see the same
pictures in the same order, whatever the codec. One row is the same student without a teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tabulate import tabulate

from clipocr.shared.cache.reader import FeatureCache
from small_clip import ACTIVATION, IMAGE_TAPS, TEACHER, TEXT_TAPS

CODECS = "fp16,klt:64,int8,klt:4,klt:24,int4"
TABLE = f"""\
title = "Image features through a codec"
columns = ["features"]

[settings]
student = "tiny"
batch_size = 16
learning_rate = 1e-3
image_taps = {list(IMAGE_TAPS)}
text_stages = []
word = false

[[variants]]
"""
TAUGHT = TABLE + 'name = "taught"\ncells = ["taught"]\n'
UNTAUGHT = TABLE + 'name = "untaught"\ncells = ["none"]\nsettings = { image_stages = [] }\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the caches, the runs and the table")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--teacher", type=Path, required=True, help="as small_clip.py wrote it")
    parser.add_argument("--codecs", default=CODECS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    args = parser.parse_args()
    codecs = args.codecs.split(",")
    args.out.mkdir(parents=True, exist_ok=True)
    for codec in codecs:
        build(args.out / f"{codec}.cache", codec, args.data / "train", args.teacher)
    seeds, epochs = ("--seeds", args.seeds), ("--set", f"epochs={args.epochs}")
    options = ("--data", args.data / "test", *seeds, *epochs)
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // args.jobs))
    work = [(codec, codec, TAUGHT) for codec in codecs]
    # Without a teacher all caches are the same.
    work.insert(1, ("none", codecs[0], UNTAUGHT))
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda row: train_and_describe(args.out, options, *row), work))
    headers = ["codec", "B/token", "centred cosine p50", "p01", "word accuracy", "1-NED", "runs"]
    align = ("left", *["right"] * (len(headers) - 1))
    print(tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True))


def build(cache: Path, codec: str, data: Path, teacher: Path) -> None:
    """Build a cache, or find that it is there."""
    clipocr(
        *("cache", "build", "--data", data, "--out", cache, "--codec", codec),
        *("--teacher", f"{TEACHER}/{teacher}", "--activation", ACTIVATION),
        *("--image-taps", ",".join(map(str, IMAGE_TAPS))),
        *("--text-taps", ",".join(map(str, TEXT_TAPS))),
    )


def train_and_describe(
    out: Path, options: tuple[object, ...], name: str, codec: str, table: str
) -> tuple[str, ...]:
    """Train what is not trained yet, and return a row of the table."""
    runs, cache = out / name, out / f"{codec}.cache"
    toml = out / f"{name}.toml"
    toml.write_text(table)
    clipocr("ablate", toml, "--cache", cache, "--out", runs, *options)
    totals = [
        json.loads(path.read_text())["total_weighted_by_samples"]
        for path in sorted(runs.glob("*/ablation.json"))
    ]
    figures = [mean_and_spread([total[key] for total in totals]) for key in ("accuracy", "1-NED")]
    of_cache = ("-", "-", "-") if name == "none" else describe(FeatureCache.open(cache))
    return (name, *of_cache, *figures, f"{len(totals)}")


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def describe(cache: FeatureCache) -> tuple[str, str, str]:
    """Return bytes a token, and median and first percentile of the worst tap's cosine."""
    keys = [f"block{tap}" for tap in IMAGE_TAPS]
    layout = cache.spec.image_layouts(0)[keys[0]]
    token_bytes = layout.shape[-1] * np.dtype(layout.dtype).itemsize
    units = [cache.unit(0, unit).fidelity for unit in cache.units()]
    p50, p01 = (
        min(unit[key][what] for unit in units for key in keys)
        for what in ("cosine_p50", "cosine_p01")
    )
    return f"{token_bytes}", f"{p50:.4f}", f"{p01:.4f}"


def clipocr(*args: object) -> None:
    """Print a command and run it, with the small CLIP known to open_clip."""
    words = [str(arg) for arg in args]
    print(f"$ python benchmarks/with_small_clip.py {' '.join(words)}", file=sys.stderr, flush=True)
    script = Path(__file__).with_name("with_small_clip.py")
    subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
