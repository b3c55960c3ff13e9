"""`make gpu`: everything that only a GPU can show, in at most eleven minutes on one H100.

    make gpu                                  all parts
    make gpu PART=1,2,3                       some, on a machine that is lent in short pieces
    make gpu PART=4,5                         the others; results of both make one page
    make gpu DEVICE=cpu SMALL=1               in miniature, on a machine without a GPU
    make gpu WORDS=words.txt FONTS=folder TEST_DATA=folder     what the reader learns and reads

    1  the tests that take a device, on it
    2  what a GPU must do as a CPU does
    3  building a cache
    4  training steps
    5  a small reader, from rendered words alone

Each part is a process of its own with so many seconds; what it found is on disk as it is found, in
.gpu/results (or the folder that OUT names), and no part stops another. At the end all that was
found makes GPU.md beside the results and, unless in miniature, benchmarks/GPU.md. Exit code 0:
every check of the parts that were asked for passed.

Where there is no network: `make wheels` elsewhere, then make gpu WHEELS=.gpu/wheels.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .page import PAGE, write_page
from .results import Check, Results, read_results, results_file

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part, by the module that does it."""

    module: str
    box_s: float
    """What it may take on an H100 with 16 cores."""


PARTS = {
    1: Part(module="suite", box_s=110),
    2: Part(module="same_as_cpu", box_s=80),
    3: Part(module="stage1", box_s=120),
    4: Part(module="stage2", box_s=120),
    5: Part(module="reader", box_s=220),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--parts", default="1,2,3,4,5")
    args = parser.parse_args()
    pages = [args.results / PAGE.name, *([] if args.small else [PAGE])]
    numbers = [int(number) for number in args.parts.split(",")]
    if unknown := set(numbers) - set(PARTS):
        parser.error(f"no part {min(unknown)}; expected some of 1,2,3,4,5")
    args.results.mkdir(parents=True, exist_ok=True)
    clear(args)
    for number in numbers:
        run_part(number, args)
        for page in pages:
            write_page(page, [args.results])
    found = read_results([args.results])
    failed = [check for number in numbers for check in found[number] if check.error]
    for check in failed:
        print(f"FAILED part {check.part}, {check.name}: {check.error}", file=sys.stderr)
    num_checks = sum(len(found[number]) for number in numbers)
    print(f"Wrote {pages[-1]}: {num_checks - len(failed)} of {num_checks} checks passed.")
    sys.exit(bool(failed))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what every part takes."""
    parser.add_argument("--work", type=Path, default=Path(".gpu"))
    parser.add_argument("--results", type=Path, default=Path(".gpu/results"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--words", type=Path)
    parser.add_argument("--fonts", type=Path)
    parser.add_argument("--test-data", type=Path, action="append", default=[])
    parser.add_argument("--minutes", type=float, default=2.5)


def clear(args: argparse.Namespace) -> None:
    """Remove what an earlier call has built, to build it anew; words and results stay."""
    for pattern in ("*.cache", "reader-*", "steps"):
        for path in args.work.glob(pattern):
            shutil.rmtree(path)


def run_part(number: int, args: argparse.Namespace) -> None:
    """Run a part in its box; that it ended before its time is a failed check too."""
    part = PARTS[number]
    box_s = part.box_s * (10 if args.device == "cpu" else 1)
    command = [sys.executable, "-m", f"gpu.{part.module}", "--work", args.work]
    command += ["--results", args.results, "--device", args.device, "--minutes", args.minutes]
    command += ["--small"] if args.small else []
    for option, value in (("--words", args.words), ("--fonts", args.fonts)):
        command += [option, value] if value else []
    for root in args.test_data:
        command += ["--test-data", root]
    results_file(args.results, number).unlink(missing_ok=True)
    print(f"== part {number}: {part.module}, at most {box_s:.0f} s", flush=True)
    started = time.perf_counter()
    env = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": python_path()}
    if args.device == "cpu":
        # As torchrun gives each of several processes: a CPU's sums depend on the number of threads.
        env["OMP_NUM_THREADS"] = "1"
    process = subprocess.Popen(
        [str(word) for word in command],
        env=env,
        start_new_session=True,
    )
    try:
        code = process.wait(box_s)
        problem = f"ended with {code} before it was through" if code else ""
    except subprocess.TimeoutExpired:
        problem = f"ran past its {box_s:.0f} s"
    except BaseException:
        end(process)
        raise
    if problem:
        end(process)
        seconds = time.perf_counter() - started
        check = Check(part=number, name="the whole part", rows=[], error=problem, seconds=seconds)
        Results(args.results, number).add(check)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a part with all the processes it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def python_path() -> str:
    """Return the path on which parts find one another and the other benchmarks."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(path for path in paths if path)


if __name__ == "__main__":
    main()
