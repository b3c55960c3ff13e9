"""How many views a core makes in a second, and what their parts take; beside another checkout too.

    OMP_WAIT_POLICY=passive python benchmarks/views.py DATA [--rows 1500] [--rounds 5]
        [--against OLD/clipocr]

DATA is a folder of word LMDBs, of whose first samples `--rows` are taken, from all LMDBs in turn.
Each round makes their clean views and their RandAugment views (other ones in every round), decodes
them, and stretches what was decoded. `augment` is the RandAugment views' time beyond that of the
clean ones. Only the time that one thread spends computing counts. Figures are medians over rounds.

`--against` names another checkout of clipocr, whose folder is called ``clipocr``, such as

    git worktree add OLD/clipocr REVISION

Its code runs in a process of its own with this Python, in alternating turns. A ratio is the median
of those within the rounds: so a machine whose speed drifts does so for both.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from clipocr.precompute.builder.views import ChunkRows, ViewMaker
from clipocr.shared.cache.spec import ViewSpec
from clipocr.shared.data.images import ImageProblemError, decode_image, stretch
from clipocr.shared.data.word_lmdb import WordLmdb, find_named_lmdbs

CHUNK_ROWS = 256
KINDS = ("clean", "randaugment")
PARTS = ("decode", "augment", "stretch")


class Bench:
    """Makes the same views again and again."""

    def __init__(self, data: Path, num_rows: int) -> None:
        sources = find_named_lmdbs([data])
        lmdbs = [WordLmdb(path) for path in sources.values()]
        in_turn = itertools.zip_longest(
            *([(source, i) for i in range(1, len(lmdb) + 1)] for source, lmdb in enumerate(lmdbs))
        )
        places = (place for places in in_turn for place in places if place)
        self._places = list(itertools.islice(places, num_rows))
        self._makers = {kind: ViewMaker(sources, ViewSpec(augment=kind), 0) for kind in KINDS}
        self._encoded = [lmdbs[source].image(idx) or b"" for source, idx in self._places]
        self._digest = hashlib.sha256()

    def round(self, view_idx: int) -> dict[str, Any]:
        """Return µs a row of everything, and the digest of all views so far."""
        times = {kind: self._views(kind, view_idx) for kind in KINDS}
        pictures: list[Any] = []
        times["decode"] = self._timed(lambda: pictures.extend(map(decoded, self._encoded)))
        sound = [picture for picture in pictures if picture is not None]
        times["stretch"] = self._timed(lambda: list(map(stretch, sound)))
        times["augment"] = times["randaugment"] - times["clean"]
        return {"times": times, "digest": self._digest.hexdigest()}

    def _views(self, kind: str, view_idx: int) -> float:
        total = 0.0
        for start in range(0, len(self._places), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            source, lmdb_index = np.array(self._places[part], np.uint32).T
            rows = ChunkRows(view_idx, source, lmdb_index)
            made: list[Any] = []
            total += self._timed(lambda rows=rows, made=made: made.append(self._makers[kind](rows)))
            self._digest.update(made[0].views.tobytes())
        return total

    def _timed(self, work: Callable[[], object]) -> float:
        started = time.thread_time()
        work()
        return 1e6 * (time.thread_time() - started) / len(self._places)


def decoded(encoded: bytes) -> Any:
    try:
        return decode_image(encoded)
    except ImageProblemError:
        return None


class Checkout:
    """A process that runs rounds with a checkout's code when asked."""

    def __init__(self, folder: Path, data: Path, num_rows: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(data), "--rows", str(num_rows), "--serve", str(folder)],
            env={**os.environ, "PYTHONPATH": _path(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def round(self, view_idx: int) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(view_idx, file=stdin, flush=True)
        line = stdout.readline()
        if not line:
            raise SystemExit("the checkout's process ended; its error stands above")
        return json.loads(line)


def _path(folder: Path) -> str:
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(folder.resolve().parent), *([given] if given else [])])


def serve(bench: Bench, folder: Path) -> None:
    """Run the rounds whose numbers come from standard input."""
    ran = Path(sys.modules["clipocr"].__file__ or "").resolve().parent
    if ran != folder.resolve():
        raise SystemExit(f"the code of {ran} runs, not that of {folder}; is it called clipocr?")
    for line in sys.stdin:
        print(json.dumps(bench.round(int(line))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(Bench(args.data, args.rows), args.serve)
        return
    folders = [Path(__file__).resolve().parents[1], *([args.against] if args.against else [])]
    checkouts = [Checkout(folder, args.data, args.rows) for folder in folders]
    rounds = []
    for i in range(args.rounds + 1):  # The first warms up, and its times do not count.
        # Each goes first in every other round.
        turns = list(range(len(checkouts)))[:: (-1) ** i]
        results = {turn: checkouts[turn].round(i) for turn in turns}
        rounds.append([results[turn] for turn in range(len(checkouts))])
    times = [[result["times"] for result in results] for results in rounds[1:]]
    print(table(times))
    if args.against:
        digests = {result["digest"] for result in rounds[-1]}
        agree = "agree" if len(digests) == 1 else "DIFFER"
        print(f"\n{2 * args.rows * len(rounds):,} views at most, SHA-256 over all: the two {agree}")
        print("\n".join(sorted(digests)))


def table(times: list[list[dict[str, float]]]) -> str:
    rows = []
    for name in (*KINDS, *PARTS):
        each = [[of_one[name] for of_one in of_round] for of_round in times]
        medians = [statistics.median(column) for column in zip(*each, strict=True)]
        row = [f"{name} views" if name in KINDS else name, f"{medians[0]:.1f}"]
        row.append(f"{1e6 / medians[0]:,.0f}" if name in KINDS else "")
        if len(medians) > 1:
            row.append(f"{medians[1]:.1f}")
            ratios = [theirs / ours for ours, theirs in each]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(row)
    headers = ["", "µs a row", "views/s of a core"]
    if len(times[0]) > 1:
        headers += ["µs, other checkout", "times as fast"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
