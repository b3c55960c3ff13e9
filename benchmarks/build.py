"""What bounds a build: each stage alone, the builder, and how many cores feed a GPU.

    OMP_WAIT_POLICY=passive python benchmarks/build.py DATA [--unit-rows 1024] [--rounds 5]

DATA is a folder of word LMDBs. One round takes one unit through

    teacher         the forward over views that are tensors already, in the builder's own batches
    views           LMDB, decoding, stretching, compressing the pixels, by one core; and once more
                    with RandAugment
    encode, write   the codec over features that are there, checksums, files, fsync
    builder         all of it: what `cache build` does, published unit by unit, from the first batch
                    on that reaches the teacher; so the start of its workers does not count

Every builder's round stands between two of the teacher's and is compared with their mean, so that
a machine whose speed drifts does so for both; padding counts as the teacher counts it. `of slowest`
is the builder against the slowest stage, views being made by all `--workers` (0: one thread, which
beside a teacher on the CPU has what that leaves idle; by default as many as `cache build` takes).
Figures are medians over rounds.

Then what other decoders do, of those that are installed, with the JPEGs among DATA: how many come
out with the very pixels of Pillow, and how many a core decodes in a second. And what all that means
for the 15.9 million samples of MJSynth and SynthText, and for a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.builder.config import BuildConfig
from clipocr.precompute.builder.units import EncodedChunk, PendingUnit, UnitBuilder
from clipocr.precompute.builder.views import ChunkRows, ViewChunk, ViewMaker, make_stored_views
from clipocr.precompute.teacher.clip import Teacher, load_teacher
from clipocr.shared.cache import names
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.codecs.codecs import Pixels, filter_pixels, unfilter_pixels
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.records import Committed
from clipocr.shared.cache.shards import encode_chunk
from clipocr.shared.data.word_lmdb import WordLmdb, find_named_lmdbs
from clipocr.shared.device import choose_device

TAPS = (3, 6, 9)
NUM_SAMPLES = 15_895_388
"""Of MJSynth (8,919,273) and SynthText (6,976,115)."""
NUM_JPEGS = 1000
GPU_RATES = (2_000, 10_000, 30_000)
"""Images/s of a teacher that somebody may have."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every stage works on."""

    cache: FeatureCache
    teacher: Teacher
    sources: Mapping[str, Path]
    views: torch.Tensor
    num_workers: int

    def unit_views(self, unit_idx: int) -> torch.Tensor:
        """Return the views of a unit, the last chunk padded as the builder pads it."""
        start, stop = self.cache.spec.unit_range(unit_idx)
        part = self.views[start:stop]
        missing = -len(part) % self.cache.spec.chunk_rows
        return torch.cat([part, part.new_zeros(missing, *part.shape[1:])])

    def without(self, unit_idx: int) -> FeatureCache:
        """Return the cache as it was before it had a unit."""
        committed, key = self.cache.committed, (0, unit_idx)
        (self.cache.folder.root / names.record_file(committed.units[key].name)).unlink()
        units = {k: record for k, record in committed.units.items() if k != key}
        others = Committed(units=units, texts=committed.texts)
        return FeatureCache(self.cache.storage, self.cache.manifest, others)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", default="ViT-B-16/random:0")
    parser.add_argument("--augment", default="clean")
    parser.add_argument("--codec", default="fp16")
    parser.add_argument("--unit-rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    device = choose_device("auto")
    precision = "fp16" if device.type == "cuda" else "fp32"
    teacher = load_teacher(
        args.teacher, image_taps=TAPS, text_taps=TAPS, precision=precision, device=device
    )
    with tempfile.TemporaryDirectory() as folder:
        config = BuildConfig(
            data=(args.data,), out=Path(folder) / "cache", teacher=args.teacher, device=str(device),
            precision=precision, augment=args.augment, codec=(Codec.parse(args.codec),),
            unit_rows=args.unit_rows, chunk_rows=min(256, args.unit_rows), workers=args.workers,
        )  # fmt: skip
        cache = build_cache(config).cache
        num_workers = config.num_workers(device.type)
        bench = Bench(
            cache=cache,
            teacher=teacher,
            sources=find_named_lmdbs(config.data),
            views=unfilter_pixels(torch.from_numpy(cache.image_reader(0, "pixels").all())),
            num_workers=num_workers,
        )
        rates, ratios = measure(bench, args.rounds)
    medians = {stage: statistics.median(rate) for stage, rate in rates.items()}
    print(
        f"units of {args.unit_rows} rows on {device}, {precision}, {args.augment} views, codec "
        f"{args.codec}, {num_workers} workers\n"
    )
    print(stages_table(medians, ratios, args.augment, num_workers))
    print()
    print(decoders_table(some_jpegs(bench.sources.values())))
    print()
    print(outlook(medians))


def measure(bench: Bench, num_rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Return images/s of every stage by round, and the builder's ratios to the teacher's."""
    rates: dict[str, list[float]] = {stage: [] for stage in STAGES}
    bare = [STAGES["teacher"](bench, 0)]
    for i in range(num_rounds):
        unit_idx = i % bench.cache.spec.num_units
        rates["builder"].append(STAGES["builder"](bench, unit_idx))
        bare.append(STAGES["teacher"](bench, unit_idx))
        for stage in ("views, clean", "views, randaugment", "encode, write"):
            rates[stage].append(STAGES[stage](bench, unit_idx))
    rates["teacher"] = bare
    around = pairwise(bare)
    return rates, [2 * b / (x + y) for b, (x, y) in zip(rates["builder"], around, strict=True)]


def teacher_rate(bench: Bench, unit_idx: int) -> float:
    device = bench.teacher.device
    views = bench.unit_views(unit_idx).to(device)
    started = time.perf_counter()
    for chunk in views.split(bench.cache.spec.chunk_rows):
        bench.teacher.image_features(chunk)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return len(views) / (time.perf_counter() - started)


def view_rate(bench: Bench, unit_idx: int, augment: str) -> float:
    spec = bench.cache.spec
    maker = ViewMaker(bench.sources, replace(spec.view, augment=augment), spec.seed)
    layout = replace(spec, chunk_rows=spec.unit_rows).image_layouts(0)[names.PIXELS]
    rows = bench.cache.rows(unit_idx)
    chunk = ChunkRows(0, rows["source"], rows["lmdb_index"])
    # Of this thread alone: what others leave of a core is no property of the decoder.
    started = time.thread_time()
    make_stored_views(maker, layout, chunk)
    return len(chunk.source) / (time.thread_time() - started)


def write_rate(bench: Bench, unit_idx: int) -> float:
    cache = bench.without(unit_idx)
    start, stop = cache.spec.unit_range(unit_idx)
    views, chunk_rows = bench.views[start:stop], cache.spec.chunk_rows
    # What features say is nothing to a writer: the first chunk's stand for all.
    features = bench.teacher.image_features(bench.unit_views(unit_idx)[:chunk_rows])
    layout = cache.spec.image_layouts(0)[names.PIXELS]
    chunks = [chunk.numpy() for chunk in views.split(chunk_rows)]
    pixels = [encode_chunk(layout, filter_pixels(chunk)) for chunk in chunks]
    with ThreadPoolExecutor(1 + len(features)) as pool:
        started = time.perf_counter()
        unit = PendingUnit(cache, 0, unit_idx)
        for chunk, payload in zip(chunks, pixels, strict=True):
            made = ViewChunk(views=chunk, bad={})
            own = {tap: f[: len(chunk)] for tap, f in features.items()}
            stored, largest = unit.encode(made, own)
            on_host = {array: of_array.cpu() for array, of_array in stored.items()}
            unit.append(EncodedChunk(unit, made, payload, on_host, largest, None), pool)
        unit.publish(pool)
    return len(views) / (time.perf_counter() - started)


def builder_rate(bench: Bench, unit_idx: int) -> float:
    cache = bench.without(unit_idx)
    started: list[float] = []

    class Clocked(Teacher):
        def chunk_features(self, *args, **kwargs):
            started.append(time.perf_counter())
            return super().chunk_features(*args, **kwargs)

    teacher = copy(bench.teacher)
    teacher.__class__ = Clocked
    num_rows = UnitBuilder(cache, teacher, bench.sources, bench.num_workers).build([(0, unit_idx)])
    padded = num_rows + -num_rows % cache.spec.chunk_rows
    return padded / (time.perf_counter() - started[0])


STAGES: Mapping[str, Callable[[Bench, int], float]] = {
    "teacher": teacher_rate,
    "views, clean": lambda bench, unit_idx: view_rate(bench, unit_idx, "clean"),
    "views, randaugment": lambda bench, unit_idx: view_rate(bench, unit_idx, "randaugment"),
    "encode, write": write_rate,
    "builder": builder_rate,
}


def stages_table(
    medians: Mapping[str, float], ratios: list[float], augment: str, num_workers: int
) -> str:
    to_teacher = statistics.median(ratios)
    views = medians[f"views, {augment}"] * max(1, num_workers)
    slowest = min(medians["teacher"], views, medians["encode, write"])
    rows = []
    for stage, rate in medians.items():
        unit = " (by one core)" if stage.startswith("views") else ""
        ratio = to_teacher if stage == "builder" else rate / medians["teacher"]
        of_slowest = to_teacher * medians["teacher"] / slowest if stage == "builder" else None
        rows.append(
            [
                stage + unit,
                f"{rate:,.1f}",
                f"{ratio:,.3f}",
                f"{of_slowest:.3f}" if of_slowest else "",
            ]
        )
    rounds = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    headers = ["", "images/s", "of teacher", "of slowest"]
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    return f"{table}\n\nbuilder of teacher, by round: {rounds}"


def some_jpegs(sources: Iterable[Path]) -> list[bytes]:
    """Return pictures that are JPEGs, from all sources in turn."""
    lmdbs = [WordLmdb(path) for path in sources]
    places = itertools.chain.from_iterable(
        itertools.zip_longest(*([(lmdb, i) for i in range(1, len(lmdb) + 1)] for lmdb in lmdbs))
    )
    pictures = (place[0].image(place[1]) or b"" for place in places if place is not None)
    return list(itertools.islice((p for p in pictures if p[:2] == b"\xff\xd8"), NUM_JPEGS))


def pillow(encoded: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(encoded), formats=("JPEG",)).convert("RGB"))


def simplejpeg_(encoded: bytes) -> Pixels:
    import simplejpeg

    return simplejpeg.decode_jpeg(encoded, "RGB")


def opencv(encoded: bytes) -> Pixels:
    import cv2

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)


def torchvision_(encoded: bytes) -> Pixels:
    from torchvision.io import ImageReadMode, decode_jpeg

    data = torch.from_numpy(np.frombuffer(encoded, np.uint8).copy())
    return decode_jpeg(data, ImageReadMode.RGB).permute(1, 2, 0).numpy()


DECODERS: Mapping[str, Callable[[bytes], Pixels]] = {
    "PIL": pillow,
    "simplejpeg": simplejpeg_,
    "cv2": opencv,
    "torchvision": torchvision_,
}
"""Module -> its decoder, at its defaults: exact inverse DCT, smooth upsampling of colour."""


def decoders_table(jpegs: list[bytes]) -> str:
    if not jpegs:
        return "no JPEG among the pictures: no decoder to compare"
    expected = [pillow(encoded) for encoded in jpegs]
    rows = []
    for module, decode in DECODERS.items():
        if importlib.util.find_spec(module) is None:
            rows.append([module, "not installed", ""])
            continue
        same = sum(
            np.array_equal(decode(encoded), pixels)
            for encoded, pixels in zip(jpegs, expected, strict=True)
        )
        started = time.thread_time()
        for encoded in jpegs:
            decode(encoded)
        rate = len(jpegs) / (time.thread_time() - started)
        rows.append([module, f"{same:,} of {len(jpegs):,}", f"{rate:,.0f}"])
    headers = ["decoder", "Pillow's pixels", "JPEGs/s of a core"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def outlook(medians: Mapping[str, float]) -> str:
    hours = NUM_SAMPLES / medians["builder"] / 3600
    lines = [f"{NUM_SAMPLES / 1e6:.1f} million samples, one view, on this machine: {hours:,.1f} h"]
    for augment in ("clean", "randaugment"):
        cores = ", ".join(
            f"{rate / medians[f'views, {augment}']:.1f} at {rate:,} images/s" for rate in GPU_RATES
        )
        lines.append(f"cores that feed a GPU's teacher with {augment} views: {cores}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
