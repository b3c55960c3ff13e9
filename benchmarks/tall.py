"""What `--tall rotate` changes for words that stand upright, and for words turned by 90 degrees.

Rendered words, a third of them as they are, a third turned clockwise (they read downwards) and a
third counter-clockwise (they read upwards), become two caches, one per setting, on each of which
the same tiny student is trained. The teacher has random weights. Each student reads words that
neither has seen, upright and turned either way. Prints a table; about seven minutes on two cores.

    python benchmarks/tall.py FOLDER [--count 4800] [--epochs 8]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from clipocr.shared.data.word_lmdb import WordLmdb, WordLmdbWriter
from demo import make_words

TURNS = {
    "upright": None,
    "clockwise": Image.Transpose.ROTATE_270,
    "counter-clockwise": Image.Transpose.ROTATE_90,
}
NUM_TEST_WORDS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=4800)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    train_words, test_words = make_words(random.Random(0))
    for name, words, count, seed in (
        ("train", train_words, args.count, 0),
        ("test", test_words, NUM_TEST_WORDS, 1),
    ):
        listed, drawn = args.folder / f"{name}.txt", args.folder / f"{name}.lmdb"
        listed.write_text("\n".join(words) + "\n")
        style = ("--style", "plain", "--case", "lower", "--seed", seed)
        clipocr("data", "render", drawn, "--words", listed, "--count", count, *style)
    for i, turn in enumerate(TURNS):
        write_turned(args.folder / "train.lmdb", args.folder / "data/train" / turn, turn, i)
        write_turned(args.folder / "test.lmdb", args.folder / "data/test" / turn, turn, None)
    rows = []
    for tall in ("stretch", "rotate"):
        cache, run = args.folder / f"{tall}.cache", args.folder / tall
        build = ("--data", args.folder / "data/train", "--teacher", "ViT-B-32/random:0")
        clipocr("cache", "build", *build, "--out", cache, "--tall", tall)
        recipe = ("--student", "tiny", "--batch-size", 16, "--learning-rate", 0.001)
        clipocr("train", "--cache", cache, "--out", run, "--epochs", args.epochs, *recipe)
        clipocr("eval", run, "--data", args.folder / "data/test")
        sets = json.loads((run / "eval.json").read_text())["sets"]
        rows.append([f"`--tall {tall}`", *(f"{sets[turn]['accuracy']:.1f}" for turn in TURNS)])
    headers = ["word accuracy, %", *TURNS]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def write_turned(source: Path, out: Path, turn: str, part: int | None) -> None:
    """Write an LMDB's pictures turned; of a part every third of them, from that one on."""
    with WordLmdbWriter(out) as writer:
        for idx, encoded, label in WordLmdb(source):
            if part is not None and idx % len(TURNS) != part:
                continue
            assert encoded is not None
            assert label is not None
            how = TURNS[turn]
            if how is not None:
                buffer = io.BytesIO()
                Image.open(io.BytesIO(encoded)).transpose(how).save(buffer, "PNG")
                encoded = buffer.getvalue()
            writer.add(encoded, label)


def clipocr(*args: object) -> None:
    words = [str(arg) for arg in args]
    print(f"$ clipocr {' '.join(words)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "clipocr", *words]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
