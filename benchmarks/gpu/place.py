"""Where a part of `make gpu` works and on what: a device, rendered words, a teacher."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import torch
from click.testing import CliRunner

import bench
import small_clip
from clipocr.cli import main
from clipocr.shared.device import choose_device, describe_device
from demo import CONSONANTS, VOWELS

from .results import Results
from .run import add_options

TRAIN_WORDS, TEST_WORDS = 20_000, 2_000


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the command line says of a part."""

    work: Path
    results: Path
    device: torch.device
    small: bool
    """Whether all sizes are miniature, so that a CPU gets through."""
    words: Path | None
    """Word list to render; None: words that are made up."""
    fonts: Path | None
    """Folder of fonts; None: matplotlib's."""
    test_data: tuple[Path, ...]
    """Roots of test sets for the reader."""
    minutes: float
    """Of training, for the reader."""

    @classmethod
    def parse(cls) -> Place:
        """Return the place that this process was told."""
        parser = argparse.ArgumentParser()
        add_options(parser)
        args = vars(parser.parse_args())
        args["device"] = choose_device(args["device"])
        args["test_data"] = tuple(args["test_data"])
        return cls(**args)

    def begin(self, part: int) -> Results:
        """Return the results of a part, and make what all parts need."""
        self.work.mkdir(parents=True, exist_ok=True)
        small_clip.register()
        results = Results(self.results, part)
        results.check("the machine", self._machine)
        return results

    def _machine(self) -> dict[str, object]:
        on_gpu = self.device.type == "cuda"
        memory = torch.cuda.get_device_properties(self.device).total_memory if on_gpu else 0
        return {
            "device": describe_device(self.device),
            "memory": f"{memory / 1e9:.0f} GB" if on_gpu else "",
            "machine": bench.machine(),
            "sizes": "miniature" if self.small else "full",
        }

    @property
    def teacher(self) -> str:
        """CLIP's ViT-B/16, or a small one, with random weights."""
        return f"{small_clip.TEACHER if self.small else 'ViT-B-16'}/random:0"

    @property
    def image_taps(self) -> tuple[int, ...]:
        """Of that teacher."""
        return small_clip.IMAGE_TAPS if self.small else (3, 6, 9)

    @property
    def text_taps(self) -> tuple[int, ...]:
        """Of that teacher."""
        return small_clip.TEXT_TAPS if self.small else (3, 6, 9)

    def sized(self, full: int, small: int) -> int:
        """Return the size for this place."""
        return small if self.small else full

    def rendered(self, name: str, count: int, *, test: bool = False) -> Path:
        """Return a root with an LMDB of rendered words, rendered unless it is there."""
        root = self.work / "data" / f"{name}-{count}"
        if not (root / "words.lmdb").exists():
            listed = self._word_list(test)
            more = ("--fonts", self.fonts) if self.fonts else ()
            if self.small:
                more += ("--jobs", 1)
            self.clipocr(
                "data", "render", root / "words.lmdb", "--words", listed, "--count", count,
                "--max-height-px", 64, "--style", "color", "--seed", int(test), *more,
            )  # fmt: skip
        return root

    def _word_list(self, test: bool) -> Path:
        """Return a list of words, of which no test word is a training word."""
        words = self._words()
        held_out = words[: max(1, len(words) // 11)]
        path = self.work / ("test.txt" if test else "train.txt")
        path.write_text("\n".join(held_out if test else words[len(held_out) :]) + "\n")
        return path

    def _words(self) -> list[str]:
        if self.words is not None:
            words = self.words.read_text(encoding="utf-8").split()
        else:
            words = made_up_words(self.sized(TRAIN_WORDS + TEST_WORDS, 220))
        random.Random(0).shuffle(words)
        return words

    def clipocr(self, *args: object, processes: int = 1, timeout_s: float = 300) -> str:
        """Run the command; return what it printed. Raises if it fails, with its last lines."""
        words = [str(arg) for arg in args]
        began = time.perf_counter()
        if self.small and processes == 1:
            # In this process, because at this size most of the time would go into imports.
            result = CliRunner().invoke(main, words)
            done = CompletedProcess(words, result.exit_code, result.stdout, result.stderr)
        else:
            launcher = ["-m", "torch.distributed.run", "--standalone"]
            launcher.append(f"--nproc-per-node={processes}")
            script = Path(small_clip.__file__).with_name("with_small_clip.py")
            command = [sys.executable, *(launcher if processes > 1 else []), str(script), *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        with (self.work / "commands.log").open("a") as log:
            log.write(f"$ clipocr {' '.join(words)}\n{done.stdout}{done.stderr}\n")
            log.write(f"[{done.returncode} after {time.perf_counter() - began:.1f} s]\n\n")
        if done.returncode:
            lines = f"{done.stdout}\n{done.stderr}".replace("\r", "\n").strip().splitlines()
            raise RuntimeError(f"clipocr {words[0]} {words[1]}: {' | '.join(lines[-5:])}")
        return done.stdout


def made_up_words(count: int) -> list[str]:
    """Return pronounceable strings, some with digits, as long as English words are."""
    rng, words = random.Random(0), set()
    while len(words) < count:
        length = min(12, max(3, round(rng.lognormvariate(1.9, 0.35))))
        if rng.random() < 0.01:
            length = rng.randint(13, 21)
        letters = [(CONSONANTS if i % 2 == 0 else VOWELS) for i in range(length)]
        words.add(
            "".join(
                rng.choice(kind if rng.random() < 0.9 else "0123456789" + CONSONANTS)
                for kind in letters
            )
        )
    return sorted(words)


def loss_of(run: Path) -> list[float]:
    """Return a run's loss by epoch."""
    history = json.loads((run / "run.json").read_text())["history"]
    return [entry["loss/total"] for entry in history]
