"""What a cache saves a training of CLIP4STR: its steps beside the same ones with CLIP in them.

    python benchmarks/clip4str.py [--sizes 224x224,32x128] [--rows 192] [--batch-size 8]
        [--steps 2] [--codec fp16]

It renders words, builds a cache of them for each size of views, and prints a table of

    cached      `clipocr train`: the loader reads, checks and decodes image tokens
    online      the same step on views of the same rows, at which the frozen image encoder looks
                without gradients; with `--tune all`, which trains it, there is no other way

by what is tuned. Both take the trainer's own step: forward, backward, clipping, AdamW, the meter. A
round is a whole epoch of `--steps` batches, from asking for the first to the end of the last step;
so it holds reading all of its data, and the wait for the first batch, which in an epoch of 50,000
steps is nothing. Sides take turns, each in a process of its own that idles meanwhile: a machine
whose speed drifts does so for all. There are at least three rounds, and a minute of them. Figures
are medians over rounds, ratios those of the rounds.

Waiting is the share of a cached round in which the step waits for the loader, decoding included.
Memory is the peak of the rounds over what the process holds when all is imported; on a GPU it is
that of PyTorch's allocator. Bytes are those that the loader reads. GMACs are multiply-accumulates
of a sample online, backward pass included; the frozen image encoder's share of them is what it
would take of the time if all were equally fast.

A second table has the bytes of a row by codec, as the format has them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.names import FINAL, PIXELS, block_name
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.spec import ImageArraySpec
from clipocr.shared.device import choose_device, choose_precision
from clipocr.shared.geometry import ViewSize
from clipocr.train.data.batch import Batch
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.journal import Journal
from clipocr.train.loop.processes import Processes
from clipocr.train.loop.run import _Run, check_cache, settled
from clipocr.train.methods.base import Needs
from clipocr.train.methods.clip4str.settings import Clip4Str
from clipocr.train.methods.clip4str.trainee import Clip4StrTrainee
from demo import make_words
from lcl import peak_resident_bytes
from tall import clipocr

TEACHER = "ViT-B-16/random:0"
PATCH_PX, WIDTH, JOINT_WIDTH = 16, 768, 512
"""Of ViT-B/16."""
RUNGS = Clip4Str.rungs
TUNES: Mapping[str, Mapping[str, Any]] = {
    "none": {"tune": "none"},
    "adapter": {"tune": "adapter"},
    "ladder": {"tune": "ladder"},
    "ladder, pruned 4": {"tune": "ladder", "ladder_pruning": 4},
    "all": {"tune": "all"},
}
"""Settings by what the tables call them."""
CODECS = ("fp16", "int8", "klt:64")
MIN_ROUNDS, MIN_SECONDS = 3, 60
"""Of each size."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What a process of its own measures."""

    tune: str
    is_cached: bool
    cache: Path
    device: str
    batch_size: int
    num_steps: int
    """Of a round."""

    @property
    def num_rows(self) -> int:
        """Of a round."""
        return self.batch_size * self.num_steps


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="224x224,32x128", help="of views, height first")
    parser.add_argument("--rows", type=int, default=192, help="of each cache")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--codec", default="fp16", help="of image tokens")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        fields = json.loads(args.side)
        serve(Side(**fields | {"cache": Path(fields["cache"])}))
        return
    if args.steps * args.batch_size > args.rows:
        parser.error(f"a round takes {args.steps * args.batch_size} rows; raise --rows to that")
    device, sizes = choose_device(args.device), [*map(ViewSize.parse, args.sizes.split(","))]
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    precision, _ = choose_precision("auto", device)
    print(
        f"{device}{threads}, {precision}, torch {torch.__version__}, {TEACHER}, {args.codec}; "
        f"rounds of {args.steps} steps of {args.batch_size}\n"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        words = render(Path(folder), args.rows)
        for size in sizes:
            cache = build(words, Path(folder) / f"{size}.cache", size, args)
            found = measure(sides_of(cache, device, args))
            by_tune = itertools.groupby(found, key=lambda figures: figures.side.tune)
            rows += [table_row(FeatureCache.open(cache), [*group]) for _, group in by_tune]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    print(f"\n{codec_table(sizes)}")


def render(folder: Path, num_rows: int) -> Path:
    """Render words and return the folder of their LMDB."""
    listed = folder / "words.txt"
    listed.write_text("\n".join(make_words(random.Random(0))[0]) + "\n")
    data = folder / "data"
    clipocr("data", "render", data / "words.lmdb", "--words", listed, "--count", num_rows)
    return data


def build(data: Path, out: Path, size: ViewSize, args: argparse.Namespace) -> Path:
    """Build a cache that all sides read, in chunks of a batch, so that a round reads whole ones."""
    clipocr(
        *("cache", "build", "--data", data, "--out", out, "--teacher", TEACHER),
        *("--view-size", size, "--image-taps", ",".join([*map(str, RUNGS), FINAL])),
        *("--codec", args.codec, "--precision", "fp32", "--device", args.device),
        *("--unit-rows", args.batch_size, "--chunk-rows", args.batch_size),
    )
    return out


def sides_of(cache: Path, device: torch.device, args: argparse.Namespace) -> list[Side]:
    return [
        Side(
            tune=tune, is_cached=is_cached, cache=cache, device=str(device),
            batch_size=args.batch_size, num_steps=args.steps,
        )
        for tune, is_cached in itertools.product(TUNES, (True, False))
        if not (tune == "all" and is_cached)
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the rounds of a side came to."""

    side: Side
    rounds: list[dict[str, float]] = field(default_factory=list)
    """What `Trainer.round` returned, without the first."""
    gmacs: dict[str, float] = field(default_factory=dict)
    """What `Trainer.gmacs` returned."""

    @property
    def seconds(self) -> list[float]:
        return [one["wall_s"] for one in self.rounds]

    @property
    def rate(self) -> float:
        """Samples/s."""
        return self.side.num_rows / statistics.median(self.seconds)

    @property
    def peak_mb(self) -> float:
        return max(one["peak_bytes"] for one in self.rounds) / 1e6

    def share(self, of: str) -> float:
        """Return what part of a round something takes."""
        return statistics.median(one[of] / one["wall_s"] for one in self.rounds)


def measure(sides: Sequence[Side]) -> list[Figures]:
    """Have sides train in turns."""
    turns = [(Figures(side=side), start(side)) for side in sides]
    started = time.perf_counter()
    for round_idx in itertools.count():
        if round_idx >= MIN_ROUNDS and time.perf_counter() > started + MIN_SECONDS:
            break
        # There and back: what drifts one way favours nobody.
        for figures, process in reversed(turns) if round_idx % 2 else turns:
            figures.rounds.append(ask(process, f"round {figures.side.num_steps}"))
    for figures, process in turns:
        figures.gmacs.update(ask(process, "gmacs"))
        process.communicate()
    return [figures for figures, _ in turns]


def start(side: Side) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--side", json.dumps(asdict(side), default=str)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # As the commands do: threads that spin while they wait are in each other's way.
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},
    )
    ask(process, "round 1")  # For what is set up once; and no two processes set up at a time.
    return process


def ask(process: subprocess.Popen[str], what: str) -> dict[str, float]:
    """Have a side's `Trainer` do something; return what it returns."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(what, file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a side ended with {process.wait()}; see above")
    found: dict[str, float] = json.loads(answer)
    return found


def table_row(cache: FeatureCache, of_tune: Sequence[Figures]) -> dict[str, str]:
    """Return by header what was found of one tuning; `all` has no cached side."""
    *of_cache, online = of_tune
    row = {"views": str(cache.spec.view.view_px), "tune": online.side.tune}
    for cached in of_cache:
        seconds = zip(online.seconds, cached.seconds, strict=True)
        arrays = Clip4Str.from_values(TUNES[cached.side.tune]).image_arrays
        row |= {
            "cached, samples/s": f"{cached.rate:.1f}",
            "of online": f"{statistics.median(a / b for a, b in seconds):.2f}",
            "waiting, %": f"{100 * cached.share('wait_s'):.1f}",
            "cached, MB": f"{cached.peak_mb:,.0f}",
            "bytes a row": f"{bytes_per_row(cache, arrays):,.0f}",
        }
    row |= {
        "online, samples/s": f"{online.rate:.1f}",
        "online, MB": f"{online.peak_mb:,.0f}",
        "views, bytes a row": f"{bytes_per_row(cache, [PIXELS]):,.0f}",
        "GMACs": f"{online.gmacs['all']:.1f}",
    }
    if "clip" in online.gmacs:
        row["CLIP, % of them"] = f"{100 * online.gmacs['clip'] / online.gmacs['all']:.0f}"
        row["CLIP, % of time"] = f"{100 * online.share('clip_s'):.0f}"
    return row


def bytes_per_row(cache: FeatureCache, arrays: Sequence[str]) -> float:
    """Return the stored bytes of a row of some arrays, indexes and checksums included."""
    layouts = [cache.spec.image_layouts(0)[name] for name in arrays]
    files = {unit: cache.unit(0, unit).files for unit in cache.units()}
    sizes = (f[a.shard_name(unit)].num_bytes for unit, f in files.items() for a in layouts)
    return sum(sizes) / cache.spec.num_rows


def codec_table(sizes: Sequence[ViewSize]) -> str:
    rows = []
    for size in sizes:
        for codec in CODECS:
            final = row_bytes(FINAL, size, codec)
            rungs = sum(row_bytes(block_name(rung), size, codec) for rung in RUNGS)
            numbers = (final, rungs, final + rungs)
            rows.append([str(size), codec, *(f"{number:,}" for number in numbers)])
    headers = ["views", "codec", "final: none, adapter", f"{len(RUNGS)} rungs", "both: ladder"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def row_bytes(array: str, size: ViewSize, codec: str) -> int:
    """Return the bytes of a row of an image array of ViT-B/16."""
    num_tokens = 1 + (size.height_px // PATCH_PX) * (size.width_px // PATCH_PX)
    width = JOINT_WIDTH if array == FINAL else WIDTH
    spec = ImageArraySpec(name=array, num_tokens=num_tokens, width=width, codec=Codec.parse(codec))
    shape, dtype = spec.stored_row
    return math.prod(shape) * np.dtype(dtype).itemsize


# -- in the process of one side -----------------------------------------------------------------


def serve(side: Side) -> None:
    """For each line of stdin do what it says and print what comes of it."""
    trainer = Trainer(side)
    for line in sys.stdin:
        what, *num_steps = line.split()
        found = trainer.gmacs() if what == "gmacs" else trainer.round(*map(int, num_steps))
        print(json.dumps(found), flush=True)


class ClipInStep(nn.Module):
    """A trainee that reads no image tokens from the cache: the frozen CLIP makes them anew."""

    def __init__(self, trainee: Clip4StrTrainee) -> None:
        super().__init__()
        self.trainee = trainee
        self.seconds = 0.0
        """That CLIP took."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        started = now_s(batch.device)
        features = self.features(batch)
        self.seconds += now_s(batch.device) - started
        terms: dict[str, Tensor] = self.trainee(replace(batch, images=features))
        return terms

    @torch.no_grad()
    def features(self, batch: Batch) -> dict[str, Tensor]:
        recogniser = self.trainee.recogniser
        return recogniser.features(recogniser.normalized(batch.normalized_views()))


def now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Trainer:
    """A run at its first step: the trainer's own, without its checkpoints and logs."""

    def __init__(self, side: Side) -> None:
        self.side, self.device = side, torch.device(side.device)
        self.imported_bytes = peak_resident_bytes()
        cache = FeatureCache.open(side.cache)
        values = {
            "method": Clip4Str.name,
            "batch_size": side.batch_size,
            "fraction": side.num_rows / cache.spec.num_rows,
            **TUNES[side.tune],
        }
        config, _ = settled(TrainConfig.from_values(values), cache, self.device)
        place = TrainPlace(cache=side.cache, out=side.cache.parent / "run", device=side.device)
        preflight = check_cache(config, cache)
        journal = Journal(place.out, config.epochs, is_silent=True)
        self.run = run = _Run(
            config, place, preflight, Processes(), journal, self.device, resume=False, init=None
        )
        self.module: nn.Module = run.trainee
        self.loader = run.loader
        if not side.is_cached and side.tune != "all":
            assert isinstance(run.trainee, Clip4StrTrainee)
            self.module = ClipInStep(run.trainee)
            self.loader = replace(preflight, needs=Needs(view_px=None)).loader(
                batch_size=side.batch_size, seed=config.seed, device=self.device
            )
        self.waited_s = 0.0

    def round(self, num_steps: int) -> dict[str, float]:
        """Take the first steps of an epoch; return what they took."""
        self.waited_s = 0.0
        if isinstance(self.module, ClipInStep):
            self.module.seconds = 0.0
        self.forget_peak()
        started = time.perf_counter()
        batches = self.timed(self.loader.epoch(0))
        for _ in range(num_steps):
            self.run._take_step(self.module, batches, 1, 1 << 30)
        self.run.meter.check(self.run.step)  # Waits for a GPU.
        return {
            "wall_s": time.perf_counter() - started,
            "wait_s": self.waited_s,
            "clip_s": self.module.seconds if isinstance(self.module, ClipInStep) else 0.0,
            "peak_bytes": self.peak_bytes(),
        }

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def forget_peak(self) -> None:
        """Let peaks begin anew: what sets a process up may need more than what it then does."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM becomes VmRSS.

    def peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return peak_resident_bytes() - self.imported_bytes

    def gmacs(self) -> dict[str, float]:
        """Return 10^9 multiply-accumulates of a sample, of a whole step and of CLIP in it."""
        module, batch = self.module, next(self.loader.epoch(0))
        macs = {"all": num_macs(lambda: self.run._take_step(module, iter([batch]), 1, 1 << 30))}
        if isinstance(module, ClipInStep):
            macs["clip"] = num_macs(lambda: module.features(batch))
        return {name: number / 1e9 / self.side.batch_size for name, number in macs.items()}


def num_macs(work: Callable[[], object]) -> float:
    """Return the multiply-accumulates of the products of some work."""
    # Attention as plain products: the counter does not know a CPU's fused kernels.
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() / 2


if __name__ == "__main__":
    main()
