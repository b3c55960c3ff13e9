"""Part 3: building a cache: how fast, what bounds it, and that its bytes are what they must be."""

from __future__ import annotations

import filecmp
import re
import shutil
import statistics
import time
from pathlib import Path

import torch

import build
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.data.word_lmdb import find_named_lmdbs

from .place import Place
from .same_as_cpu import listed, load, relative_error


def main() -> None:
    place = Place.parse()
    results = place.begin(3)
    num_words = place.sized(65_536, 64)
    rendered = results.check("rendering words", render, place, num_words)
    if rendered is None:
        return
    data = Path(rendered["data"])
    fp16, klt = place.work / "fp16.cache", place.work / "klt.cache"
    results.check("clean views, fp16", timed_build, place, data, fp16)
    results.check("the builder and its parts", builder_parts, place, fp16, data)
    augmented = ("--codec", f"klt:{place.sized(192, 24)}", "--augment", "randaugment")
    results.check("RandAugment, klt", timed_build, place, data, klt, *augmented)
    results.check("one process and several", processes_agree, place, data, fp16)
    results.check("rows computed again", recompute, place, data, fp16)
    results.check("a CPU's cache", compare_with_cpu, place)


def render(place: Place, num_words: int) -> dict[str, object]:
    started = time.perf_counter()
    data = place.rendered("train", num_words)
    rate = num_words / (time.perf_counter() - started)
    return {"data": str(data), "words": num_words, "words/s": round(rate)}


def timed_build(
    place: Place, data: Path, cache: Path, *more: object, processes: int = 1
) -> dict[str, object]:
    options = (
        "cache", "build", "--data", data, "--out", cache, "--teacher", place.teacher,
        "--image-taps", listed(place.image_taps), "--text-taps", listed(place.text_taps),
        "--device", place.device, *more,
    )  # fmt: skip
    if place.small:
        options += ("--unit-rows", 32, "--chunk-rows", 8)
    started = time.perf_counter()
    printed = place.clipocr(*options, processes=processes)
    seconds = time.perf_counter() - started
    rate = re.search(r"built at ([\d,]+) images/s", printed)
    opened = FeatureCache.open(cache)
    return {
        "images/s": rate[1] if rate else "",
        "s in all, with scan, text and start": round(seconds, 1),
        "bytes a row": round(opened.num_bytes() / opened.spec.num_rows),
    }


def builder_parts(place: Place, cache: Path, data: Path) -> list[dict[str, object]]:
    """The builder against each part alone; views are made by all workers."""
    # A copy, because what is written alone are no features of these words.
    copy = place.work / "parts.cache"
    shutil.copytree(cache, copy, dirs_exist_ok=True)
    opened = FeatureCache.open(copy)
    teacher = load(place, place.device, opened.spec.teacher.precision)
    num_workers = 0 if place.device.type == "cpu" else max(1, torch.get_num_threads() - 1)
    stored = torch.from_numpy(opened.image_reader(0, "pixels").all())
    bench = build.Bench(
        cache=opened,
        teacher=teacher,
        sources=find_named_lmdbs((data,)),
        views=build.unfilter_pixels(stored),
        num_workers=num_workers,
    )
    rates, _ = build.measure(bench, 2)
    medians = {stage: statistics.median(of_stage) for stage, of_stage in rates.items()}
    for stage in medians:
        if stage.startswith("views"):
            medians[stage] *= max(1, num_workers)
    bounds = [medians[stage] for stage in ("teacher", "views, clean", "encode, write")]
    return [
        {
            "part": stage,
            "images/s": round(rate),
            "of the slowest part": round(rate / min(bounds), 2),
        }
        for stage, rate in medians.items()
    ]


def processes_agree(place: Place, data: Path, alone: Path) -> dict[str, object]:
    together = place.work / "four.cache"
    count = place.sized(4, 2)
    figures = timed_build(place, data, together, "--workers", 3, processes=count)
    files = {path.relative_to(alone) for path in alone.rglob("*") if path.is_file()}
    others = {path.relative_to(together) for path in together.rglob("*") if path.is_file()}
    assert files == others, sorted(map(str, files ^ others))[:9]
    _, differing, _ = filecmp.cmpfiles(alone, together, list(map(str, files)), shallow=False)
    assert not differing, sorted(differing)[:9]
    return {
        "files": len(files),
        "differing": 0,
        "processes": count,
        "images/s of one": figures["images/s"],
    }


def recompute(place: Place, data: Path, cache: Path) -> dict[str, object]:
    count = place.sized(200, 16)
    place.clipocr(
        "cache", "verify", cache, "--recompute", count, "--data", data, "--device", place.device
    )
    return {"rows": count, "sound": "yes"}


def compare_with_cpu(place: Place) -> list[dict[str, object]]:
    """By float32 on a CPU and on this device, and by what this device takes by itself."""
    data = place.rendered("compared", place.sized(512, 32))
    caches = {}
    for name, options in (
        ("CPU, fp32", ("--device", "cpu", "--precision", "fp32")),
        ("device, fp32", ("--device", place.device, "--precision", "fp32")),
        ("device, default", ("--device", place.device)),
    ):
        path = place.work / f"compared-{name.replace(', ', '-')}.cache"
        timed_build(place, data, path, *options)
        caches[name] = FeatureCache.open(path)
    expected = caches.pop("CPU, fp32")
    rows = []
    for name, cache in caches.items():
        row: dict[str, object] = {"cache": name}
        pixels = [c.image_reader(0, "pixels").all() for c in (cache, expected)]
        assert (pixels[0] == pixels[1]).all(), "pixels differ"
        for array in expected.spec.image_names:
            features = [torch.from_numpy(c.image_reader(0, array).all()) for c in (cache, expected)]
            row[array] = f"{relative_error(*features):.1e}"
        for array, table in expected.text_table("char-36").arrays.items():
            both = (cache.text_table("char-36").arrays[array][:], table[:])
            row[f"text {array}"] = f"{relative_error(*map(torch.from_numpy, both)):.1e}"
        rows.append(row)
        most = 2e-3 if "fp32" in name else 2e-2
        errors = [float(value) for key, value in row.items() if key != "cache"]
        assert max(errors) < most, rows
    return rows


if __name__ == "__main__":
    main()
