"""`make demo`: the whole path on words that are made up here, in about five minutes on two cores.

Everything it does is a clipocr command, printed before it runs, so that it can be repeated by hand.
The words are made up (CVC, CVCV and CVCVC), so that a student cannot guess them: it has to read.
None of the words it is tested on was rendered for training.
"""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
from pathlib import Path

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
PATTERNS = ("CVC", "CVCV", "CVCVC")

NUM_TRAIN_WORDS, NUM_TEST_WORDS = 1600, 500
NUM_TRAIN_IMAGES = 4800
TRAINING = {"--student": "tiny", "--epochs": 6, "--batch-size": 16, "--learning-rate": 1e-3}


def main(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    train_words, test_words = make_words(random.Random(0))
    teacher = choose_teacher()
    data, cache, run_folder = folder / "data", folder / "words.cache", folder / "run"
    for name, words, count, seed in (
        ("train", train_words, NUM_TRAIN_IMAGES, 0),
        ("test", test_words, NUM_TEST_WORDS, 1),
    ):
        (folder / f"{name}.txt").write_text("\n".join(words) + "\n")
        lmdb, listed = data / name / "words.lmdb", folder / f"{name}.txt"
        style = ("--style", "plain", "--case", "lower")
        clipocr("data", "render", lmdb, "--words", listed, "--count", count, *style, "--seed", seed)
    clipocr("cache", "build", "--data", data / "train", "--out", cache, "--teacher", teacher)
    options = itertools.chain.from_iterable(TRAINING.items())
    clipocr("train", "--cache", cache, "--out", run_folder, *options)
    table = clipocr("eval", run_folder, "--data", data / "test", show=False)
    print(f"\nThe student, its log for TensorBoard and its figures are in {run_folder},")
    print(f"the cache is {cache}, the rendered words are in {data}.\n")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    print("\n".join(rows))
    accuracy = float(rows[-1].split("|")[3])
    print(f"held-out word accuracy: {accuracy:.1f} %")


def make_words(rng: random.Random) -> tuple[list[str], list[str]]:
    """Return made-up words to train on and others to test on, of all patterns in equal parts."""
    words: set[str] = set()
    for pattern in itertools.cycle(PATTERNS):
        words.add("".join(rng.choice(CONSONANTS if c == "C" else VOWELS) for c in pattern))
        if len(words) == NUM_TRAIN_WORDS + NUM_TEST_WORDS:
            break
    shuffled = sorted(words)
    rng.shuffle(shuffled)
    return shuffled[NUM_TEST_WORDS:], shuffled[:NUM_TEST_WORDS]


def choose_teacher() -> str:
    """Return OpenAI's CLIP if its weights can be had, else one with random weights, and say so."""
    import torch

    from clipocr.precompute.teacher.clip import load_teacher
    from clipocr.shared.errors import TeacherError

    cpu = torch.device("cpu")
    taps = (3, 6, 9)
    try:
        load_teacher(
            "ViT-B-16/openai", image_taps=taps, text_taps=taps, precision="fp32", device=cpu
        )
    except TeacherError as e:
        print(f"{e}.\nSo this demo's teacher has RANDOM weights: it shows the path, not CLIP.")
        return "ViT-B-16/random:0"
    print("The teacher is OpenAI's CLIP ViT-B/16.")
    return "ViT-B-16/openai"


def clipocr(*args: object, show: bool = True) -> str:
    """Print a command and run it; return what it wrote to stdout."""
    words = [str(arg) for arg in args]
    print(f"\n$ clipocr {' '.join(words)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "clipocr", *words], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    if show:
        print(done.stdout, end="", flush=True)
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
