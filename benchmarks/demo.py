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
RANDOM, OPENAI = "ViT-B-16/random:0", "ViT-B-16/openai"
MEANING = {
    RANDOM: "The teacher's weights are RANDOM: how the two students differ says nothing of CLIP.\n"
    "It shows how runs are compared, not what distillation brings.",
    OPENAI: "One seed and 500 made-up words do not measure what CLIP brings: clipocr ablate\n"
    "trains several seeds, and reads your own test sets.",
}
STYLE = ("--style", "plain", "--case", "lower")
STUDENT = ("--student", "tiny", "--epochs", 6, "--batch-size", 16, "--learning-rate", 1e-3)
ALONE = ("--image-stages", "none", "--text-stages", "none", "--no-word")


def main(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    train_words, test_words = make_words(random.Random(0))
    teacher = choose_teacher()
    data, cache, sheet = folder / "data", folder / "words.cache", folder / "sheet.png"
    distilled, baseline, report = (folder / name for name in ("distilled", "baseline", "report"))
    for name, words, count, seed in (
        ("train", train_words, NUM_TRAIN_IMAGES, 0),
        ("test", test_words, NUM_TEST_WORDS, 1),
    ):
        (folder / f"{name}.txt").write_text("\n".join(words) + "\n")
        lmdb, listed = data / name / "words.lmdb", folder / f"{name}.txt"
        clipocr("data", "render", lmdb, "--words", listed, "--count", count, *STYLE, "--seed", seed)
    clipocr("cache", "build", "--data", data / "train", "--out", cache, "--teacher", teacher)
    clipocr("cache", "show", cache, "--out", sheet)
    clipocr("train", "--cache", cache, "--out", distilled, *STUDENT)
    clipocr("train", "--cache", cache, "--out", baseline, *STUDENT, *ALONE)
    clipocr("eval", baseline, distilled, "--data", data / "test", "--report", report)
    print(f"""
report         {report / "index.html"}  (open it in a browser)
contact sheet  {sheet}
curves         {distilled / "curves.png"}, {baseline / "curves.png"}
runs           {distilled}, {baseline}
cache          {cache}
words          {data}

{MEANING[teacher]}""")


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
        load_teacher(OPENAI, image_taps=taps, text_taps=taps, precision="fp32", device=cpu)
    except TeacherError as e:
        print(f"{e}.\nSo this demo's teacher has RANDOM weights: it shows the path, not CLIP.")
        return RANDOM
    print("The teacher is OpenAI's CLIP ViT-B/16.")
    return OPENAI


def clipocr(*args: object) -> None:
    """Print a command and run it."""
    words = [str(arg) for arg in args]
    print(f"\n$ clipocr {' '.join(words)}", flush=True)
    if status := subprocess.call([sys.executable, "-m", "clipocr", *words]):
        raise SystemExit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
