"""Part 4: training steps: how fast, how near to what the GPU can do, and what a cache saves."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import small_clip
import step

from .place import Place

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bf16 products per second, by the maker's sheets, of the SXM versions."""
NUM_PROFILED = 3
NUM_KERNELS = 10


def main() -> None:
    place = Place.parse()
    results = place.begin(4)
    settings = [
        step.Setting(preset=preset, batch_size=batch_size, num_steps=num_steps)
        for preset, batch_size, num_steps in (
            [("tiny", 16, 4)]
            if place.small
            else [("small", 320, 24), ("small", 1024, 10), ("tiny", 320, 24)]
        )
    ]
    made = results.check("words and their cache", prepare, place, settings)
    if made is None:
        return
    words, cache = Path(made["words"]), Path(made["cache"])

    def variant(name: str, setting: step.Setting, compile: str = "auto") -> step.Variant:
        return step.Variant(
            name=name, setting=setting, words=words, cache=cache, device=str(place.device),
            compile=compile,
        )  # fmt: skip

    first = settings[0]
    for name in ("random targets", "cached"):
        results.check(
            f"{describe(first)}: {name}, not compiled", rounds_of, variant(name, first, "off")
        )
    results.check(f"{describe(first)}: a profile", profiled, place, variant("cached", first))
    for setting in settings:
        for name in step.BATCHES:
            results.check(f"{describe(setting)}: {name}", rounds_of, variant(name, setting))


def describe(setting: step.Setting) -> str:
    return f"{setting.preset}, {setting.batch_size} words a step"


def prepare(place: Place, settings: list[step.Setting]) -> dict[str, object]:
    """Render words and build their cache, both unless they are there."""
    num_words = max(setting.num_rows for setting in settings)
    data = place.rendered("steps", num_words + num_words // 8)
    words, cache = place.work / "steps" / "words.lmdb", place.work / "steps" / "words.cache"
    words.parent.mkdir(exist_ok=True)
    if not words.exists():
        step.copy_words(data, words, num_words)
    if not (cache / "sealed.json").exists():
        step.build(words, cache, place.device, small_teacher() if place.small else step.TEACHER)
    return {"words": str(words), "cache": str(cache), "rows": num_words}


def small_teacher() -> str:
    """Return a teacher as deep as CLIP's ViT-B/16, as the steps read it, but narrow."""
    path = Path(small_clip.__file__).with_name(f"{small_clip.TEACHER}.json")
    settings = json.loads(path.read_text())
    for part in ("vision_cfg", "text_cfg"):
        settings[part]["layers"] = 12
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ViT-deep-16.json").write_text(json.dumps(settings))
        open_clip.add_model_config(folder)
    return "ViT-deep-16/random:0"


def rounds_of(variant: step.Variant) -> dict[str, object]:
    """Train for some rounds; the first sets up what later ones find."""
    on_gpu = torch.device(variant.device).type == "cuda"
    gc.collect()
    rounds = step.rounds(variant)
    began = time.perf_counter()
    next(rounds)
    first_s = time.perf_counter() - began
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    walls_s, cpus_s = zip(*(next(rounds) for _ in range(2)), strict=True)
    wall_s, num_rows = statistics.median(walls_s), variant.setting.num_rows
    row = {
        "samples/s": round(num_rows / wall_s, 1 if num_rows / wall_s < 1000 else None),
        "ms a step": round(1e3 * wall_s / variant.setting.num_steps, 2),
        "CPU ms a step": round(1e3 * statistics.median(cpus_s) / variant.setting.num_steps, 1),
        "first round s": round(first_s, 1),
    }
    if on_gpu:
        row["peak MB"] = torch.cuda.max_memory_allocated() // 10**6
    rounds.close()
    if variant.name == "random targets" and variant.compile == "auto":
        row |= share_of_peak(variant, row["ms a step"])
    return row


def share_of_peak(variant: step.Variant, ms_a_step: float) -> dict[str, object]:
    """Return a step's products, counted without compiling, and how fast they were."""
    run = step.run_of(replace(variant, compile="off"))
    epoch = iter(step.BATCHES[variant.name](variant, run.cache)())
    with FlopCounterMode(display=False) as counter:
        run._take_step(run.trainee, epoch, 1, 1 << 30)
    tflop = counter.get_total_flops() / 1e12
    tflops = tflop / ms_a_step * 1e3
    row: dict[str, object] = {"TFLOP a step": round(tflop, 3), "TFLOP/s": round(tflops, 2)}
    name = torch.cuda.get_device_name() if variant.device.startswith("cuda") else ""
    for gpu, peak in PEAK_TFLOPS.items():
        if gpu in name:
            row["% of bf16 peak"] = round(100 * tflops / peak, 1)
    return row


def profiled(place: Place, variant: step.Variant) -> list[dict[str, object]]:
    """Return the kernels that take longest; the first row is of the whole step."""
    on_gpu = place.device.type == "cuda"
    run = step.run_of(variant)
    epochs = step.BATCHES[variant.name](variant, run.cache)

    def steps(epoch: object, count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            run._take_step(run.trainee, epoch, 1, 1 << 30)
        run.meter.check(run.step)  # Waits for a GPU.
        return 1e3 * (time.perf_counter() - started) / count

    # A whole epoch first, in which every length of labels comes.
    steps(iter(epochs()), variant.setting.num_steps)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as measured:
        wall_ms = steps(iter(epochs()), NUM_PROFILED)
    events = measured.key_averages()
    kernels = [e for e in events if e.device_type.name == "CUDA"] if on_gpu else list(events)

    def own_ms(event: object) -> float:
        total_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        return total_us / 1e3 / NUM_PROFILED

    busy_ms = sum(map(own_ms, kernels))
    launches = sum(e.count for e in events if "LaunchKernel" in e.key) / NUM_PROFILED
    rows = [
        {
            "kernel": f"all; {launches:.0f} launches, "
            f"{100 * max(0.0, 1 - busy_ms / wall_ms):.0f} % idle under the profiler",
            "ms a step": round(wall_ms, 2),
            "times": 1,
        }
    ]
    for event in sorted(kernels, key=own_ms, reverse=True)[:NUM_KERNELS]:
        rows.append(
            {
                "kernel": event.key[:100],
                "ms a step": round(own_ms(event), 3),
                "times": round(event.count / NUM_PROFILED, 1),
            }
        )
    measured.export_chrome_trace(str(place.results / "step.json.gz"))
    return rows


if __name__ == "__main__":
    main()
