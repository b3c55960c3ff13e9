"""The builder against the bare teacher, on the same rows, in one run.

Bare is the teacher's forward over views that are already tensors, in the builder's own batches.
The builder decodes, teaches, encodes, checks, writes and syncs the same rows, one unit a round.
Each round stands between two bare ones and is compared with their mean, so that a machine whose
speed drifts does so for both. Prints images/s and the median ratio.

    OMP_WAIT_POLICY=passive python benchmarks/build_speed.py DATA [--unit-rows 1024] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from tabulate import tabulate

from clipocr.precompute.build import BuildConfig, build_cache
from clipocr.precompute.teacher import Teacher, load_teacher
from clipocr.precompute.units import UnitBuilder
from clipocr.shared.cache import FeatureCache, unit_name
from clipocr.shared.charset import Charset
from clipocr.shared.codecs import unfilter_pixels
from clipocr.shared.device import choose_device
from clipocr.shared.words import find_named_lmdbs

TAPS = (3, 6, 9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", default="ViT-B-16/random:0")
    parser.add_argument("--augment", default="clean")
    parser.add_argument("--unit-rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    device = choose_device("auto")
    precision = "fp16" if device.type == "cuda" else "fp32"
    teacher = load_teacher(
        args.teacher, image_taps=TAPS, text_taps=TAPS, precision=precision, device=device
    )
    with tempfile.TemporaryDirectory() as folder:
        config = BuildConfig(
            data=(args.data,), out=Path(folder) / "cache", teacher=args.teacher, device=device,
            precision=precision, charset=Charset.load("36"), augment=args.augment,
            unit_rows=args.unit_rows, num_workers=args.workers,
        )  # fmt: skip
        cache = build_cache(config).cache
        views = unfilter_pixels(torch.from_numpy(cache.view_reader(0, "pixels").all()))
        sources = tuple(find_named_lmdbs(config.data).values())
        bare, built = [bare_rate(teacher, unit_views(cache, views, 0))], []
        for i in range(args.rounds):
            unit_idx = i % cache.spec.num_units
            built.append(builder_rate(cache, teacher, sources, args.workers, unit_idx))
            bare.append(bare_rate(teacher, unit_views(cache, views, unit_idx)))
    around = pairwise(bare)
    ratios = [2 * b / (x + y) for b, (x, y) in zip(built, around, strict=True)]
    rows = [
        ("bare teacher", f"{statistics.median(bare):.1f}", "1"),
        ("builder", f"{statistics.median(built):.1f}", f"{statistics.median(ratios):.3f}"),
    ]
    print(f"units of {args.unit_rows} rows on {device}, {precision}, {args.augment} views")
    print(tabulate(rows, headers=["", "images/s", "of bare"], tablefmt="github"))
    print("ratios of the rounds:", *(f"{ratio:.3f}" for ratio in ratios))


def unit_views(cache: FeatureCache, views: torch.Tensor, unit_idx: int) -> torch.Tensor:
    """Return the views of a unit, the last chunk padded as the builder pads it."""
    start, stop = cache.spec.unit_range(unit_idx)
    part = views[start:stop]
    missing = -len(part) % cache.spec.chunk_rows
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])])


def bare_rate(teacher: Teacher, views: torch.Tensor) -> float:
    """Return images/s of the forward alone."""
    views = views.to(teacher.device)
    started = time.perf_counter()
    for chunk in views.split(256):
        teacher.image_taps(chunk)
    if teacher.device.type == "cuda":
        torch.cuda.synchronize(teacher.device)
    return len(views) / (time.perf_counter() - started)


def builder_rate(
    cache: FeatureCache,
    teacher: Teacher,
    sources: tuple[Path, ...],
    num_workers: int,
    unit_idx: int,
) -> float:
    """Return images/s of building a unit anew, padding counted as the bare teacher counts it."""
    name = unit_name(0, unit_idx)
    (cache.folder.root / cache.commits[name].record_name).unlink()
    others = {n: commit for n, commit in cache.commits.items() if n != name}
    without = FeatureCache(cache.storage, cache.manifest, others)
    started = time.perf_counter()
    num_rows = UnitBuilder(without, teacher, sources, num_workers).build([(0, unit_idx)])
    return (num_rows + -num_rows % 256) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
