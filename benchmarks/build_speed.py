"""The builder against the bare teacher, on the same rows, in one run.

Bare is the teacher's forward over views that are already tensors, in the builder's own batches.
The builder decodes, teaches, encodes, checks, writes and syncs the same rows. Rounds alternate, so
that a machine whose speed drifts does so for both. Prints images/s and the ratio.

    python benchmarks/build_speed.py DATA [--teacher MODEL/WEIGHTS] [--unit-rows 512] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from tabulate import tabulate

from clipocr.precompute.build import BuildConfig, build_cache
from clipocr.precompute.teacher import Teacher, load_teacher
from clipocr.shared.cache import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.shared.codecs import unfilter_pixels
from clipocr.shared.device import choose_device

TAPS = (3, 6, 9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", default="ViT-B-16/random:0")
    parser.add_argument("--augment", default="clean")
    parser.add_argument("--unit-rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    device = choose_device("auto")
    precision = "fp16" if device.type == "cuda" else "fp32"
    teacher = load_teacher(
        args.teacher, image_taps=TAPS, text_taps=TAPS, precision=precision, device=device
    )
    with tempfile.TemporaryDirectory() as folder:
        config = BuildConfig(
            data=(args.data,), out=Path(folder) / "first", teacher=args.teacher, device=device,
            precision=precision, charset=Charset.load("36"), augment=args.augment,
            unit_rows=args.unit_rows, num_workers=args.workers,
        )  # fmt: skip
        first = build_cache(config).cache
        bare, built = [], []
        for i in range(args.rounds):
            bare.append(bare_rate(teacher, first))
            again = replace(config, out=Path(folder) / "again")
            built.append(builder_rate(again, first, i))
    ratio = statistics.median(b / a for a, b in zip(bare, built, strict=True))
    rows = [
        ("bare teacher", f"{statistics.median(bare):.1f}", "1"),
        ("builder", f"{statistics.median(built):.1f}", f"{ratio:.3f}"),
    ]
    print(f"{first.spec.num_rows} rows on {device}, {precision}, {args.augment} views")
    print(tabulate(rows, headers=["", "images/s", "of bare"], tablefmt="github"))


def bare_rate(teacher: Teacher, cache: FeatureCache) -> float:
    """Return images/s of the forward alone, on the views of the cache."""
    chunk_rows, reader = cache.spec.chunk_rows, cache.view_reader(0, "pixels")
    views = unfilter_pixels(torch.from_numpy(reader.all())).to(teacher.device)
    views = views[: len(views) - len(views) % chunk_rows]
    started = time.perf_counter()
    for start in range(0, len(views), chunk_rows):
        teacher.image_taps(views[start : start + chunk_rows])
    if teacher.device.type == "cuda":
        torch.cuda.synchronize(teacher.device)
    return len(views) / (time.perf_counter() - started)


def builder_rate(config: BuildConfig, cache: FeatureCache, round_idx: int) -> float:
    """Return images/s of building the units of a cache whose index and text are there."""
    out = config.out.with_name(f"{config.out.name}-{round_idx}")
    units = [commit for commit in cache.commits.values() if commit.text is None]
    left_out = {
        "sealed.json",
        *(name for unit in units for name in (unit.record_name, *unit.files)),
    }
    source = Path(str(cache.storage))
    for path in source.rglob("*"):
        name = path.relative_to(source).as_posix()
        if path.is_file() and name not in left_out:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(path.read_bytes())
    summary = build_cache(replace(config, out=out))
    return summary.num_rows_built / summary.image_seconds


if __name__ == "__main__":
    main()
