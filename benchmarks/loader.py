"""The stage-2 loader against the usual pipeline, a bare memory map and other people's stores.

    python benchmarks/loader.py DATA [--codecs fp16,int8,klt:192] [--megabytes 1024] [--rounds 5]

DATA is a folder of word LMDBs. For each codec it makes a cache of about that many megabytes
(`loader_data`), the same rows in the other stores (`loader_rivals`), and a table of

    usual pipeline       LMDB, PIL, timm's RandAugment, bicubic resize to 32x128, normalisation, in
                         a torch DataLoader with a worker per core; images alone, no features at all
    the other stores     the same stored bytes per row
    memory map           the same bytes of the same files, block by block, a block being the chunk
                         that `CacheLoader` reads; copied out of a `numpy.memmap` on one thread, in
                         order, not checked, not decompressed, not put into batches
    clipocr              whole batches in host memory: chunks read and checked, pixels decompressed,
                         rows gathered from 64 lanes, text features looked up
    clipocr, decoded     the same, then pixels unfiltered and features decoded on the device

A round is a whole epoch of each, one after another, from asking for its first batch to having its
last; the first round warms up, so that the page cache holds everything. The figures are medians
over rounds, ratios those of the rounds. MB are stored bytes (of the usual pipeline: of its images).

Then, each in a process of its own: resident memory after each of ten epochs, and the share of a
tiny student's training time that is spent waiting for data.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset

from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.data.images import decode_image
from clipocr.shared.data.word_lmdb import WordLmdb, find_named_lmdbs
from clipocr.shared.device import choose_device
from clipocr.train.data.cached_words import open_cache
from clipocr.train.data.loader import CacheLoader
from loader_data import TAPS, build_small, bytes_per_row, repeat_rows, sample_words
from loader_rivals import NUM_WORKERS, RIVALS, require_rivals

BLOCKS = tuple(f"block{tap}" for tap in TAPS)
NUM_WORDS = 1024
"""Rows of the small cache."""
NUM_USUAL_WORDS = 4096
"""Words that the usual pipeline goes through in an epoch."""
WAIT_ROWS = 1536
NUM_GROWTH_EPOCHS = 10


@dataclass(frozen=True, kw_only=True)
class Contestant:
    name: str
    num_rows: int
    num_bytes: float
    """Stored bytes of an epoch."""
    epoch: Callable[[], object]
    """Go through an epoch."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--codecs", default="fp16,int8,klt:192")
    parser.add_argument("--megabytes", type=int, default=1024, help="of each store")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, help="folder for what is made; default: a temporary")
    parser.add_argument("--no-rivals", action="store_true", help="leave other stores out")
    parser.add_argument("--growth", type=Path, metavar="CACHE", help="for itself")
    args = parser.parse_args()
    if args.growth:
        print_growth(args.growth, args.batch_size)
        return
    if not args.no_rivals:
        require_rivals()
    device = choose_device(args.device)
    print(
        f"{NUM_WORKERS} cores, {device}, torch {torch.__version__}; batches of {args.batch_size}; "
        "page cache warm"
    )
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        sample_words(args.data, work / "usual" / "words", NUM_USUAL_WORDS)
        words = sample_words(args.data, work / "words", NUM_WORDS)
        for codec in args.codecs.split(","):
            compare(args, codec, words, work / codec.replace(":", "-"), device)


def compare(
    args: argparse.Namespace, codec: str, words: Path, work: Path, device: torch.device
) -> None:
    """Print the table of one codec; its files are removed again."""
    work.mkdir()
    small = build_small(words, work / "small.cache", codec)
    num_rows = int(args.megabytes * 1e6 / bytes_per_row(small))
    cache = repeat_rows(small, work / "words.cache", num_rows)
    num_bytes = num_rows * bytes_per_row(cache)
    contestants = [usual_pipeline(work.parent / "usual", args.batch_size)]
    for name, make in ({} if args.no_rivals else RIVALS).items():
        batches = make(cache, work / name.replace(" ", "-"), args.batch_size)
        contestants.append(
            Contestant(name=name, num_rows=num_rows, num_bytes=num_bytes, epoch=drain(batches))
        )
    loader, epochs = cache_loader(cache, args.batch_size, device), iter(range(1 << 30))
    for name, epoch in (
        ("memory map", memory_map(cache)),
        ("clipocr", drain(lambda: loader.encoded_batches(next(epochs)))),
        ("clipocr, decoded", drain(lambda: loader.epoch(next(epochs)), device)),
    ):
        contestants.append(
            Contestant(name=name, num_rows=num_rows, num_bytes=num_bytes, epoch=epoch)
        )
    seconds = measure(contestants, args.rounds)
    print(f"\n{codec}: {num_rows:,} rows of {num_bytes / num_rows:,.0f} bytes\n")
    print(table(contestants, seconds), flush=True)
    del contestants
    print(f"\nresident MB after each of {NUM_GROWTH_EPOCHS} epochs: {growth(cache, args)}")
    few = repeat_rows(small, work / "few.cache", WAIT_ROWS)
    print(f"training: {train(few, work / 'run', device)}", flush=True)
    shutil.rmtree(work)


def measure(contestants: list[Contestant], num_rounds: int) -> list[list[float]]:
    """Return the seconds of an epoch, per round and contestant; the first round is left out."""
    rounds = []
    for _ in range(num_rounds + 1):
        seconds = []
        for contestant in contestants:
            started = time.perf_counter()
            contestant.epoch()
            seconds.append(time.perf_counter() - started)
        rounds.append(seconds)
    return rounds[1:]


def table(contestants: list[Contestant], rounds: list[list[float]]) -> str:
    names = [contestant.name for contestant in contestants]
    rates = np.asarray([c.num_rows for c in contestants]) / np.asarray(rounds)
    usual, mapped = rates[:, :1], rates[:, [names.index("memory map")]]
    columns = (
        names,
        [f"{rate:,.0f}" for rate in np.median(rates, axis=0)],
        [
            f"{rate * c.num_bytes / c.num_rows / 1e6:,.1f}"
            for rate, c in zip(np.median(rates, axis=0), contestants, strict=True)
        ],
        [f"{ratio:.1f}" for ratio in np.median(rates / usual, axis=0)],
        [f"{ratio:.3f}" for ratio in np.median(rates / mapped, axis=0)],
    )
    headers = ["", "samples/s", "MB/s", "of the usual pipeline", "of the memory map"]
    rows = list(zip(*columns, strict=True))
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def drain(
    batches: Callable[[], Iterator[object]], device: torch.device | None = None
) -> Callable[[], None]:
    """Return a call that takes all batches of an epoch, and waits for the device."""

    def epoch() -> None:
        for _ in batches():
            pass
        if device and device.type == "cuda":
            torch.cuda.synchronize(device)

    return epoch


class UsualWords(Dataset[torch.Tensor]):
    """Words as an online run sees them: decoded, augmented and resized one by one."""

    def __init__(self, data: Path) -> None:
        from timm.data.auto_augment import rand_augment_transform
        from torchvision import transforms

        self._paths = tuple(find_named_lmdbs((data,)).values())
        self._lmdbs: list[WordLmdb] = []
        lmdbs = [WordLmdb(path) for path in self._paths]
        self._places = [(s, i) for s, lmdb in enumerate(lmdbs) for i in range(1, len(lmdb) + 1)]
        self.num_bytes = sum(len(lmdbs[s].image(i) or b"") for s, i in self._places)
        self._transform = transforms.Compose(
            [
                rand_augment_transform("rand-m5-n3-inc1", {"img_mean": (128, 128, 128)}),
                transforms.Resize((32, 128), transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize(0.5, 0.5),
            ]
        )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, idx: int) -> torch.Tensor:
        if not self._lmdbs:  # Opened in the worker.
            self._lmdbs = [WordLmdb(path) for path in self._paths]
        source, lmdb_index = self._places[idx]
        image = decode_image(self._lmdbs[source].image(lmdb_index) or b"")
        view: torch.Tensor = self._transform(image)
        return view


def usual_pipeline(data: Path, batch_size: int) -> Contestant:
    words = UsualWords(data)
    loader = DataLoader(
        words, batch_size, shuffle=True, num_workers=NUM_WORKERS, persistent_workers=True
    )
    return Contestant(
        name="usual pipeline",
        num_rows=len(words),
        num_bytes=words.num_bytes,
        epoch=drain(lambda: iter(loader)),
    )


def memory_map(cache: FeatureCache) -> Callable[[], None]:
    """Return a call that copies every chunk of every array out of memory maps."""
    maps = []
    for key in cache.spec.image_layouts(0):
        layout = cache.image_reader(0, key).layout
        for shard_idx in range(layout.num_shards):
            path = cache.folder.root / layout.shard_name(shard_idx)
            maps.append((np.memmap(path, np.uint8, "r"), layout.num_chunks(shard_idx)))

    def epoch() -> None:
        for mapped, num_chunks in maps:
            for block in np.array_split(mapped, num_chunks):
                np.array(block)

    return epoch


def cache_loader(cache: FeatureCache, batch_size: int, device: torch.device) -> CacheLoader:
    return open_cache(str(cache.storage)).loader(
        batch_size=batch_size, images=BLOCKS, text=(*BLOCKS, "eot"), views=1, device=str(device)
    )


def growth(cache: FeatureCache, args: argparse.Namespace) -> str:
    command = [sys.executable, __file__, "--growth", str(cache.storage)]
    command += ["--batch-size", str(args.batch_size)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def print_growth(cache: Path, batch_size: int) -> None:
    loader = cache_loader(FeatureCache.open(cache), batch_size, torch.device("cpu"))
    for epoch in range(NUM_GROWTH_EPOCHS):
        drain(lambda epoch=epoch: loader.encoded_batches(epoch))()
        status = Path("/proc/self/status").read_text()
        print(round(int(status.partition("VmRSS:")[2].split()[0]) / 1000), end=" ")


def train(cache: FeatureCache, out: Path, device: torch.device) -> str:
    """Return the last line of a short run: its speed, and how long it waited."""
    command = [sys.executable, "-m", "clipocr", "train", "--cache", str(cache.storage)]
    command += ["--out", str(out), "--student", "tiny", "--epochs", "1", "--batch-size", "64"]
    command += ["--device", device.type]
    command += ["--image-taps", ",".join(map(str, TAPS)), "--text-taps", ",".join(map(str, TAPS))]
    # Idle threads of OpenMP spin by default, on the cores that the loader reads with.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip().splitlines()[-1].partition(": ")[2]


if __name__ == "__main__":
    main()
