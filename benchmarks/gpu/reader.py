"""Part 5: from rendered words alone to a small reader, in the minutes that are given.

A small CLIP is trained on pictures of words and their letters; what it says of the words is
cached; a student of at most 8 M parameters learns from that, and another one for as many steps
without. Both are measured on rendered words that neither has seen, and on whatever test sets are
handed over.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import clipocr
import small_clip
from clipocr.train.deploy.description import load_described
from clipocr.train.deploy.safetensors_file import write_safetensors

from .place import Place, loss_of
from .same_as_cpu import listed

STUDENT = {"width": 192, "encoder_heads": 6, "decoder_heads": 6, "dropout": 0.0}
MOST_PARAMETERS, MOST_BYTES = 8_000_000, 16_000_000
MARK = 91.9
"""Of IIIT5K's test words PP-OCRv4's mobile recogniser (10.9 MB) reads so many percent, letter case
and all but letters and digits left out."""
SHARE_OF_TEACHER = 0.35
EPOCHS_PER_MINUTE = 3.5


def main() -> None:
    place = Place.parse()
    results = place.begin(5)
    words = results.check("words to learn from", render, place)
    if words is None:
        return
    train_root, test_root = Path(words["train"]), Path(words["test"])
    teacher = results.check("a small CLIP as teacher", train_teacher, place, train_root)
    if teacher is None:
        return
    cache = results.check("its cache", build_cache, place, train_root, teacher["weights"])
    if cache is None:
        return
    runs = []
    for name, options in (
        ("distilled", {}),
        ("plain", {"image_stages": (), "text_stages": (), "word": False}),
    ):
        run = place.work / f"reader-{name}"
        trained = results.check(
            f"the {name} student", train_student, place, Path(cache["cache"]), run, options
        )
        if trained is not None:
            runs.append(run)
            results.check(f"the {name} student's file", write_weights, place, run)
    for root in (test_root, *place.test_data):
        results.check(f"words of {root.name} that are read", evaluate, place, runs, root)


def render(place: Place) -> dict[str, object]:
    train_root = place.rendered("reader", place.sized(120_000, 32))
    test_root = place.rendered("reader-test", place.sized(4000, 16), test=True)
    return {"train": str(train_root), "test": str(test_root)}


def train_teacher(place: Place, data: Path) -> dict[str, object]:
    weights = place.work / "small_clip.pt"
    minutes = SHARE_OF_TEACHER * place.minutes
    command = [
        sys.executable, small_clip.__file__, weights, "--data", data, "--minutes", minutes,
        "--batch-size", place.sized(1024, 8), "--learning-rate", 2e-3, "--device", place.device,
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(" | ".join(done.stderr.strip().splitlines()[-3:]))
    steps = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    return {"weights": str(weights), "minutes": minutes, "last": steps[-1] if steps else ""}


def build_cache(place: Place, data: Path, weights: str) -> dict[str, object]:
    cache = place.work / "reader.cache"
    size = ("--unit-rows", 32, "--chunk-rows", 8) if place.small else ()
    printed = place.clipocr(
        "cache", "build", "--data", data, "--out", cache, "--augment", "randaugment",
        "--views", 2, "--teacher", f"{small_clip.TEACHER}/{weights}",
        "--activation", small_clip.ACTIVATION, "--image-taps", listed(small_clip.IMAGE_TAPS),
        "--text-taps", listed(small_clip.TEXT_TAPS), "--device", place.device, *size,
    )  # fmt: skip
    return {"cache": str(cache), "printed": printed.strip().splitlines()[-1]}


def train_student(
    place: Place, cache: Path, run: Path, options: dict[str, Any]
) -> dict[str, object]:
    summary = clipocr.train(
        cache=cache, out=run, student=STUDENT, device=str(place.device),
        epochs=max(1, round(EPOCHS_PER_MINUTE * place.minutes)),
        batch_size=place.sized(320, 8), image_taps=small_clip.IMAGE_TAPS,
        text_taps=small_clip.TEXT_TAPS, **options,
    )  # fmt: skip
    losses = loss_of(run)
    return {
        "steps": summary.num_steps,
        "samples/s": round(summary.samples_per_second),
        "loss of the first epoch": round(losses[0], 3),
        "loss of the last": round(losses[-1], 3),
    }


def write_weights(place: Place, run: Path) -> dict[str, object]:
    """Write the weights in half precision, as they would be handed on."""
    recogniser, description = load_described(run)
    num_parameters = sum(p.numel() for p in recogniser.parameters())
    path = place.results / f"{run.name}.safetensors"
    write_safetensors(path, recogniser.half(), description)
    num_bytes = path.stat().st_size
    assert num_parameters <= MOST_PARAMETERS, num_parameters
    assert num_bytes < MOST_BYTES, num_bytes
    # As it would be used.
    clipocr.load(path, device=str(place.device))
    return {"file": path.name, "parameters": num_parameters, "MB": round(num_bytes / 1e6, 1)}


def evaluate(place: Place, runs: list[Path], root: Path) -> list[dict[str, object]]:
    rows = []
    for run in runs:
        results = clipocr.evaluate(clipocr.load(run, device=str(place.device)), root)
        for result in results.sets:
            accuracy = result.counts.figures.accuracy
            row: dict[str, object] = {
                "student": run.name.removeprefix("reader-"),
                "set": result.name,
                "words": len(result.words),
                "read, %": round(accuracy, 2),
            }
            if result.name.lower().startswith("iiit5k"):
                row["mark, %"] = MARK
                row["passed"] = "yes" if accuracy > MARK else "no"
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
