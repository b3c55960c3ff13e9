"""What a student trained on rendered words reads of real ones: `mjsynth` beside `scene`.

As many pictures of the same words are rendered in each style, and half in each ("both"). `mjsynth`
has the 16 fonts of its default and, in a row of its own, those of `scene`: what is installed here.
A tiny student first learns to read plain print; from there it is trained on each set with the plain
recognition loss, so that the pictures are all that differs: same words, start, steps, and order by
seed. Prints a table of what is read of each test set; about an hour on two cores.

    python benchmarks/scene.py FOLDER --words LEXICON --data ROOT [--count 12800] [--epochs 6]

LEXICON is a text file, one word a line; words of 3 to 8 letters or digits are taken of it, because
signs have short ones. ROOT has test LMDBs, such as IIIT5K's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tabulate import tabulate

from clipocr.precompute.data.render import load_fonts, load_words
from clipocr.shared.data.word_lmdb import WordLmdb, WordLmdbWriter
from codec_training import clipocr
from small_clip import TEACHER

SHORTEST, LONGEST = 3, 8
PLAIN, BOTH = "plain", "half `mjsynth`, half `scene`"
MJSYNTH, SAME_FONTS, SCENE = "`mjsynth`", "`mjsynth`, fonts of `scene`", "`scene`"
RECIPE = ("--student", "tiny", "--batch-size", 32, "--learning-rate", 0.002)
NO_DISTILLATION = ("--image-stages", "none", "--text-stages", "none", "--no-word")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12800, help="pictures of each set")
    parser.add_argument("--augment", default="randaugment", help="of the views of each set")
    parser.add_argument("--start", type=Path, help="run to begin with, of an earlier call")
    parser.add_argument("--start-epochs", type=int, default=10, help="on plain print")
    parser.add_argument("--epochs", type=int, default=6, help="on each set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2, help="trainings at a time")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    words, fonts = args.folder / "words.txt", args.folder / "fonts"
    words.write_text("\n".join(short_words(args.words, args.count)) + "\n")
    fonts.mkdir()
    for font in load_fonts(None, print, of_system=True):
        (fonts / font.path.name).symlink_to(font.path)
    drawn = ("--words", words, "--count", args.count)
    start = args.start or args.folder / "start"
    if not args.start:
        render_and_build(args.folder, PLAIN, "clean", *drawn, "--style", "plain")
        train(cache_of(args.folder, PLAIN), start, args.start_epochs, "--seed", 0)
    clipocr("eval", start, "--data", args.data)
    drawn = (*drawn, "--style")
    render_and_build(args.folder, MJSYNTH, args.augment, *drawn, "mjsynth")
    render_and_build(args.folder, SAME_FONTS, args.augment, *drawn, "mjsynth", "--fonts", fonts)
    render_and_build(args.folder, SCENE, args.augment, *drawn, "scene", "--fonts", fonts)
    write_half_of_each(*(lmdb_of(args.folder, name) for name in (MJSYNTH, SCENE, BOTH)))
    build(args.folder, BOTH, args.augment)
    sets = (MJSYNTH, SAME_FONTS, SCENE, BOTH)
    runs = [(name, seed) for seed in range(args.seeds) for name in sets]

    def train_and_read(run: tuple[str, int]) -> dict[str, dict[str, float]]:
        name, seed = run
        out = args.folder / f"{slug(name)}-{seed}"
        train(cache_of(args.folder, name), out, args.epochs, "--init", start, "--seed", seed)
        clipocr("eval", out, "--data", args.data)
        return read_figures(out)

    with ThreadPoolExecutor(args.at_once) as pool:
        figures = dict(zip(runs, pool.map(train_and_read, runs), strict=True))
    for test_set, of_start in read_figures(start).items():
        print(f"\n{test_set}; the start reads {of_start['accuracy']:.1f} %\n")
        print_table({run: figures[run][test_set] for run in runs}, sets)


def print_table(figures: dict[tuple[str, int], dict[str, float]], sets: tuple[str, ...]) -> None:
    """Print word accuracy and 1-NED of every run, and their means."""
    rows = []
    for name in sets:
        row = [name]
        for measure in ("accuracy", "1-NED"):
            values = [figures[run][measure] for run in figures if run[0] == name]
            row += [", ".join(f"{v:.1f}" for v in values), f"{statistics.mean(values):.1f}"]
        rows.append(row)
    headers = ["trained on", "word accuracy, % (seeds)", "mean", "1-NED (seeds)", "mean"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def short_words(lexicon: Path, count: int) -> list[str]:
    """Return at most `count` words of a lexicon that signs could have, in random order."""
    words = dict.fromkeys(word.lower() for word in load_words(lexicon))
    short = [w for w in words if SHORTEST <= len(w) <= LONGEST and w.isascii() and w.isalnum()]
    random.Random(0).shuffle(short)
    return short[:count]


def write_half_of_each(first: Path, second: Path, out: Path) -> None:
    """Write an LMDB with every other picture of two whose words are the same, in the same order."""
    with WordLmdbWriter(out) as writer:
        for one, other in zip(WordLmdb(first), WordLmdb(second), strict=True):
            idx, encoded, label = one if one[0] % 2 else other
            assert one[2] == other[2] == label, f"sample {idx} is another word in {second}"
            assert encoded is not None
            writer.add(encoded, label)


def render_and_build(folder: Path, name: str, augment: str, *options: object) -> None:
    """Render a set, and build its cache."""
    clipocr("data", "render", lmdb_of(folder, name), *options)
    build(folder, name, augment)


def build(folder: Path, name: str, augment: str) -> None:
    """Build the cache of a set: of augmented pictures two views each, which take turns."""
    # A student without distillation reads no features; one tap is the least a cache has.
    features = ("--teacher", f"{TEACHER}/random:0", "--image-taps", 1, "--text-taps", 1)
    views = ("--augment", augment, "--views", 1 if augment == "clean" else 2)
    places = ("--data", lmdb_of(folder, name), "--out", cache_of(folder, name))
    clipocr("cache", "build", *places, *features, *views)


def train(cache: Path, out: Path, epochs: int, *options: object) -> None:
    """Train a tiny student on the pictures and labels of a cache."""
    recipe = (*RECIPE, *NO_DISTILLATION, "--epochs", epochs, *options)
    clipocr("train", "--cache", cache, "--out", out, *recipe)


def read_figures(run: Path) -> dict[str, dict[str, float]]:
    """Return the figures of each test set."""
    sets: dict[str, dict[str, float]] = json.loads((run / "eval.json").read_text())["sets"]
    return sets


def lmdb_of(folder: Path, name: str) -> Path:
    """Return where the pictures of a set are."""
    return folder / "data" / slug(name)


def cache_of(folder: Path, name: str) -> Path:
    """Return where the cache of a set is."""
    return folder / f"{slug(name)}.cache"


def slug(name: str) -> str:
    """Return a set's name as one of a file."""
    return name.replace("`", "").replace(",", "").replace(" ", "-")


if __name__ == "__main__":
    main()
