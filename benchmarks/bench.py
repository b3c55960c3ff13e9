"""Run every benchmark and write what they print into RESULTS.md.

    make bench                          all of them
    make bench ONLY="loader step"       some of them
    make bench DATA=words               on word LMDBs of your own; else on rendered words

RESULTS.md is written by hand but for its blocks ``<!-- measured:NAME -->`` to ``<!-- end -->``: a
benchmark's block is replaced by the machine, the versions, the date, the command and its tables. A
benchmark that fails leaves its block alone, and the command exits with 1.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from demo import clipocr, make_words

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
LIBRARIES = ("clipocr-str", "torch", "numpy", "zarr", "numcodecs", "lmdb", "pillow")

NUM_IMAGES = 4096
TEACHER = "ViT-words-16/{work}/small_clip.pt --activation gelu"
TAPS = "--image-taps 2,4,6 --text-taps 1,2,3"
BENCHMARKS: Mapping[str, tuple[str, ...]] = {
    "loader": (
        "loader.py {data} --codecs fp16 --megabytes 1024 --rounds 3",
        "loader.py {data} --codecs int8 --megabytes 512 --rounds 3",
        "loader.py {data} --codecs klt:192 --megabytes 256 --rounds 3",
        # Longer epochs, for which the other stores would take an hour: filling 64 lanes with their
        # first chunks then weighs less.
        "loader.py {data} --codecs fp16 --megabytes 4096 --rounds 3 --no-rivals",
        "loader.py {data} --codecs int8 --megabytes 2250 --rounds 2 --no-rivals",
        "loader.py {data} --codecs klt:192 --megabytes 700 --rounds 2 --no-rivals",
    ),
    "step": (
        "step.py {data} --students tiny:16:32,tiny:64:4,small:16:4 --rounds 2",
        # Longer rounds: the wait for an epoch's first batch then weighs as little as in training.
        "step.py {data} --students tiny:16:64,tiny:64:16 --variants random,cached --rounds 5",
    ),
    "clip4str": ("clip4str.py",),
    "build": ("build.py {data} --rounds 4",),
    "lcl": ("lcl.py",),
    "codecs": (
        "small_clip.py {work}/small_clip.pt --data {data} --minutes 5",
        f"with_small_clip.py cache build --data {{data}} --out {{work}}/small.cache "
        f"--teacher {TEACHER} {TAPS}",
        "codec_fidelity.py {work}/small.cache --plot benchmarks/codecs.png",
    ),
}
"""Commands of each benchmark, one after another."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path, help="folder for rendered words, caches, models")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--data", type=Path, help="word LMDBs; default: rendered words")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    data = args.data or render_words(args.work / "data")
    places = {"work": str(args.work), "data": str(data)}
    failed = [name for name in args.names or BENCHMARKS if not measure(name, places)]
    print(f"Wrote {RESULTS}.")
    if failed:
        sys.exit(f"failed, and left as they were: {', '.join(failed)}")


def render_words(data: Path) -> Path:
    """Render the words that every benchmark reads, unless they are there."""
    if not (data / "words.lmdb").exists():
        data.mkdir(parents=True, exist_ok=True)
        (data / "words.txt").write_text("\n".join(make_words(random.Random(0))[0]) + "\n")
        options = ["--words", data / "words.txt", "--count", NUM_IMAGES, "--max-height-px", 64]
        clipocr("data", "render", data / "words.lmdb", *options)
    return data


def measure(name: str, places: Mapping[str, str]) -> bool:
    """Run a benchmark and put what it prints into its block; return whether it ended well."""
    # As the commands do: threads that spin while they wait are in each other's way.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    sections = [f"{machine()}."]
    for command in BENCHMARKS[name]:
        # Paths as they were given would say where this machine keeps its words.
        shown = f"python benchmarks/{command.format(work='.bench', data='DATA')}"
        script, *arguments = command.split()
        arguments = [argument.format(**places) for argument in arguments]
        print(f"== {shown}", file=sys.stderr, flush=True)
        process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        printed = ""
        for line in process.stdout or ():
            print(line, end="", flush=True)
            printed += line
        if process.wait():
            return False
        sections.append(f"```console\n$ {shown}\n```\n\n{printed.strip()}")
    fill(name, "\n\n".join(sections))
    return True


def fill(name: str, text: str) -> None:
    """Replace a block of the results."""
    block = re.compile(rf"(<!-- measured:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
    before = RESULTS.read_text(encoding="utf-8")
    after, count = block.subn(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", before)
    if count != 1:
        sys.exit(f"{RESULTS} has {count} blocks measured:{name}; expected one")
    RESULTS.write_text(after, encoding="utf-8")


def machine() -> str:
    """Return processor, device, versions and date, in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {installed(name)}" for name in LIBRARIES)
    return (
        f"{processor()}, {cores} cores, {device}; Python {platform.python_version()}, {versions}; "
        f"{datetime.date.today().isoformat()}"
    )


def processor() -> str:
    """Return the processor's name as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    main()
