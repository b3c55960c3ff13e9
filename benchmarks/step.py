"""What a training step costs, and what a cache saves of it.

    python benchmarks/step.py DATA [--students tiny:16:16,tiny:64:8,small:16:4] [--rounds 3]
        [--variants random,cached]

DATA is a folder of word LMDBs; of its words as many are used as the longest round takes. For each
student, as PRESET:BATCH:STEPS, it prints a table of

    student alone     recognition loss only; batches lie ready on the device
    random targets    alignment heads and all losses, on targets that lie ready: what a cache costs
                      beyond this is its reading
    cached            `clipocr train`: the loader reads, checks and decodes a cache
    online, tuned     the teacher in the step as well as one can: no block after the last tap, text
                      features looked up, fp16 and torch.compile on a GPU, pictures decoded by the
                      processes of a DataLoader
    online, official  as the official code: all 12 blocks, the labels of every batch through the
                      text encoder at the batch's own length; on a GPU student and teacher under
                      autocast to fp16, and neither compiled

all with the trainer's own step: forward, backward, clipping, AdamW, the meter. A round is a whole
epoch of STEPS batches, from asking for the first to the end of the last step; so it holds reading
all of its data, and the wait for the first batch, which in an epoch of 50,000 steps is nothing.
Variants take turns, each in a process of its own that idles meanwhile: a machine whose speed
drifts does so for all, and memory is one variant's. CPU time and peak memory (`VmHWM`; on a GPU, of
PyTorch's allocator) are the process's; those that decode pictures come on top. Figures are medians
over rounds, ratios those of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset

from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.shared.data.images import ImageProblemError, decode_image, stretch
from clipocr.shared.data.word_lmdb import WordLmdb, WordLmdbWriter, find_named_lmdbs
from clipocr.shared.device import choose_device, choose_precision
from clipocr.train.data.batch import Batch
from clipocr.train.data.cached_words import open_cache
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.journal import Journal
from clipocr.train.loop.processes import Processes
from clipocr.train.loop.run import _Run, check_cache
from clipocr.train.methods.clip_ocr.settings import ClipOcr
from clipocr.train.models.config import SIZES, StudentConfig
from clipocr.train.models.tokenizer import LabelTokenizer
from lcl import peak_resident_bytes

TEACHER = "ViT-B-16/random:0"
TAPS = (3, 6, 9)
BLOCKS = tuple(f"block{tap}" for tap in TAPS)
UNIT_ROWS = 64
"""Small, so that a round can be any multiple of it."""
CHARSET = Charset.load("36")
MAX_LABEL_LENGTH = 25
TOKENIZER = LabelTokenizer(CHARSET, MAX_LABEL_LENGTH)
REFERENCES = ("random targets", "online, tuned", "online, official")
"""Variants that the others are compared with."""
WORKERS = max(1, len(os.sched_getaffinity(0)) - 1)
"""Processes that decode pictures for the online variants."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One student and one batch size."""

    preset: str
    batch_size: int
    num_steps: int
    """Of a round."""

    @classmethod
    def parse(cls, text: str) -> Setting:
        preset, batch_size, num_steps = text.split(":")
        setting = cls(preset=preset, batch_size=int(batch_size), num_steps=int(num_steps))
        if preset not in SIZES or setting.num_rows % UNIT_ROWS:
            raise argparse.ArgumentTypeError(
                f"{text}: expected one of {', '.join(SIZES)}, and batch size x steps a "
                f"multiple of {UNIT_ROWS}"
            )
        return setting

    @property
    def num_rows(self) -> int:
        return self.batch_size * self.num_steps


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a process of its own measures."""

    name: str
    setting: Setting
    words: Path
    cache: Path
    device: str
    compile: str = TrainConfig.compile


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--students", default="tiny:16:16,tiny:64:8,small:16:4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--variants", default="", help="only those whose names begin so, with commas between"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        fields = json.loads(args.variant)
        setting = Setting(**fields.pop("setting"))
        paths = {name: Path(fields.pop(name)) for name in ("words", "cache")}
        serve(Variant(setting=setting, **paths, **fields))
        return
    settings = [Setting.parse(text) for text in args.students.split(",")]
    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        num_words = max(setting.num_rows for setting in settings)
        words = copy_words(args.data, Path(folder) / "words.lmdb", num_words)
        cache = build(words, Path(folder) / "words.cache", device)
        threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        print(f"{device}{threads}, {precision_on(device)}, torch {torch.__version__}, {TEACHER}")
        for setting in settings:
            variants = [
                Variant(name=name, setting=setting, words=words, cache=cache, device=str(device))
                for name in BATCHES
                if name.startswith(tuple(args.variants.split(",")))
            ]
            print(f"\n{setting.preset}, batch size {setting.batch_size}\n")
            print(table(measure(variants, args.rounds)), flush=True)


def copy_words(data: Path, out: Path, num_words: int) -> Path:
    """Copy words that every variant can use into one LMDB."""
    chosen: list[tuple[bytes, str]] = []
    for lmdb in map(WordLmdb, find_named_lmdbs((data,)).values()):
        for idx in range(1, len(lmdb) + 1):
            image, label = lmdb.image(idx) or b"", CHARSET.adapt(lmdb.label(idx) or "")
            with contextlib.suppress(ImageProblemError):
                decode_image(image)
                if 0 < len(label) <= MAX_LABEL_LENGTH:
                    chosen.append((image, label))
            if len(chosen) == num_words:
                with WordLmdbWriter(out) as writer:
                    for image, label in chosen:
                        writer.add(image, label)
                return out
    raise SystemExit(f"{data}: {len(chosen)} usable words, expected {num_words}; lower the steps")


def build(words: Path, out: Path, device: torch.device, teacher: str = TEACHER) -> Path:
    from clipocr.precompute.builder.build import build_cache
    from clipocr.precompute.builder.config import BuildConfig
    from clipocr.shared.cache.codecs.codec import Codec

    config = BuildConfig(
        data=(words,), out=out, teacher=teacher, charset=CHARSET, device=str(device),
        codec=(Codec.parse("fp16"),), unit_rows=UNIT_ROWS, chunk_rows=UNIT_ROWS,
    )  # fmt: skip
    build_cache(config)
    return out


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a variant's rounds came to."""

    rates: list[float]
    """Samples/s."""
    cpu_ms: list[float]
    """CPU time per sample."""
    peak_bytes: int


def measure(variants: list[Variant], num_rounds: int) -> dict[str, Figures]:
    """Return each variant's figures, round by round."""
    processes = {variant.name: start(variant) for variant in variants}
    num_rows = variants[0].setting.num_rows
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    for round_idx in range(num_rounds):
        turns = list(processes.items())
        # There and back: what drifts one way favours nobody.
        for name, process in reversed(turns) if round_idx % 2 else turns:
            wall_s, cpu_s, _ = ask(process)
            rounds[name].append((num_rows / wall_s, 1e3 * cpu_s / num_rows))
    figures = {}
    for name, process in processes.items():
        rates, cpu_ms = map(list, zip(*rounds[name], strict=True))
        figures[name] = Figures(rates=rates, cpu_ms=cpu_ms, peak_bytes=int(ask(process)[2]))
        process.communicate()
    return figures


def start(variant: Variant) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "-", "--variant", json.dumps(asdict(variant), default=str)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ask(process)  # A round for what is set up once; and no two processes set up at a time.
    return process


def ask(process: subprocess.Popen[str]) -> tuple[float, float, float]:
    """Have a variant train for a round; return its seconds, CPU seconds, and peak bytes so far."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("round\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a variant ended with {process.wait()}; see above")
    wall_s, cpu_s, peak_bytes = map(float, answer.split())
    return wall_s, cpu_s, peak_bytes


def table(figures: dict[str, Figures]) -> str:
    rows = []
    for name, own in figures.items():
        ratios = [
            statistics.median(a / b for a, b in zip(own.rates, figures[other].rates, strict=True))
            for other in REFERENCES
            if other in figures
        ]
        row = [name, f"{statistics.median(own.rates):.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
        row += [f"{statistics.median(own.cpu_ms):.1f}", f"{own.peak_bytes / 1e6:,.0f}"]
        rows.append(row)
    headers = ["", "samples/s", *(f"of {other}" for other in REFERENCES if other in figures)]
    headers += ["CPU ms/sample", "peak MB"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


# -- in the process of one variant --------------------------------------------------------------


def serve(variant: Variant) -> None:
    """For each line of stdin train for a round and print what `ask` returns."""
    on_gpu = torch.device(variant.device).type == "cuda"
    for _, (wall_s, cpu_s) in zip(sys.stdin, rounds(variant), strict=False):
        peak_bytes = torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()
        print(wall_s, cpu_s, peak_bytes, flush=True)


def rounds(variant: Variant) -> Iterator[tuple[float, float]]:
    """Train, a round at a time; yield the seconds and the CPU seconds of each."""
    run = run_of(variant)
    batches = BATCHES[variant.name](variant, run.cache)
    while True:
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        epoch = iter(batches())
        for _ in range(variant.setting.num_steps):
            run._take_step(run.trainee, epoch, 1, 1 << 30)
        assert next(epoch, None) is None
        run.meter.check(run.step)  # Waits for a GPU.
        yield time.perf_counter() - started_s, time.process_time() - started_cpu_s


def run_of(variant: Variant) -> _Run:
    """Return a run at its first step: the trainer's own, without its checkpoints and logs."""
    setting, device = variant.setting, torch.device(variant.device)
    cache = FeatureCache.open(variant.cache)
    is_official = variant.name == "online, official"
    config = TrainConfig(
        method=ClipOcr(student=StudentConfig(size=SIZES[setting.preset])),
        charset=CHARSET,
        batch_size=setting.batch_size,
        precision=mixed_precision(device) if is_official else precision_on(device),
        compile="off" if is_official else variant.compile,
    )
    if variant.name == "student alone":
        alone = replace(config.method, image_stages=(), text_stages=(), word=False)
        config = replace(config, method=alone)
    place = TrainPlace(cache=variant.cache, out=variant.cache.parent / "run", device=str(device))
    preflight = check_cache(config, cache)
    journal = Journal(place.out, config.epochs, is_silent=True)
    return _Run(config, place, preflight, Processes(), journal, device, resume=False, init=None)


def mixed_precision(device: torch.device) -> str:
    """Return what the official run computes in, which a CPU has no use for."""
    return "fp16" if device.type == "cuda" else "fp32"


def precision_on(device: torch.device) -> str:
    return choose_precision("auto", device)[0]


Epochs = Callable[[], Iterable[Batch]]


def ready_batches(variant: Variant, cache: FeatureCache) -> Epochs:
    """Noise as pictures and targets, on the device before the clock starts; the labels are real."""
    rows, device = variant.setting.batch_size, variant.device
    image_spec, text_spec = cache.spec.images[0], cache.text_specs()[0]
    labels = [label for _, label in labelled(variant)]
    views = torch.randint(256, (rows, 32, 128, 3), dtype=torch.uint8, device=device)
    image = {name: half_noise(rows, *image_spec.row_shape, device=device) for name in BLOCKS}
    length = MAX_LABEL_LENGTH + 1
    text = {
        name: half_noise(rows, length, text_spec.array(name).width, device=device)
        for name in BLOCKS
    }
    eot = half_noise(rows, text_spec.array("eot").width, device=device)
    batches = []
    for start_idx in range(0, len(labels), rows):
        own = labels[start_idx : start_idx + rows]
        longest = max(map(len, own)) + 1
        batches.append(
            Batch(
                views=views,
                labels=own,
                token_ids=TOKENIZER.encode(own).to(device),
                images=image,
                text={"eot": eot} | {name: f[:, :longest] for name, f in text.items()},
                device=torch.device(device),
            )
        )
    return lambda: batches


def half_noise(*shape: int, device: str) -> torch.Tensor:
    return torch.randn(shape, device=device).half()


def cached_batches(variant: Variant, cache: FeatureCache) -> Epochs:
    """As `clipocr train` reads them: the units that a round takes."""
    setting = variant.setting
    loader = open_cache(variant.cache).loader(
        batch_size=setting.batch_size,
        images=BLOCKS,
        text=(*BLOCKS, "eot"),
        fraction=setting.num_rows / UNIT_ROWS / len(cache.units()),
        views=1,
        device=variant.device,
    )
    return lambda: loader.epoch(0)


def text_name(cache: FeatureCache) -> str:
    return cache.require_text(CHARSET, MAX_LABEL_LENGTH, "char").name


def tuned_batches(variant: Variant, cache: FeatureCache) -> Epochs:
    """Only the image encoder runs in the step."""
    device = torch.device(variant.device)
    teacher = load_online_teacher(cache, device, mixed_precision(device), TAPS)
    if device.type == "cuda":
        # Each block: the transformer itself is never called, because it would run them all.
        for block in teacher._visual.transformer.resblocks[: max(TAPS)]:
            block.compile()
    text = cache.text_table(text_name(cache))
    number = {label: idx for idx, label in enumerate(text.strings)}

    def batch(views: torch.Tensor, labels: list[str]) -> Batch:
        ids = np.asarray([number[label] for label in labels])
        num_positions = max(map(len, labels)) + 1
        nodes = text.nodes[ids, :num_positions]
        return Batch(
            views=views.to(device),
            labels=labels,
            token_ids=TOKENIZER.encode(labels).to(device),
            images=teacher.image_features(views),
            text={
                name: torch.from_numpy(table[ids if name == "eot" else nodes]).to(device)
                for name, table in text.arrays.items()
            },
            device=device,
        )

    return decoded_ahead(variant, batch)


def official_batches(variant: Variant, cache: FeatureCache) -> Epochs:
    """Official ``system.py`` 276-285: everything anew for each batch."""
    import open_clip

    device = torch.device(variant.device)
    teacher = load_online_teacher(cache, device, mixed_precision(device), (*TAPS, 12))

    def batch(views: torch.Tensor, labels: list[str]) -> Batch:
        num_positions = max(map(len, labels)) + 1
        # Split into characters; SOT, characters, EOT.
        tokens = open_clip.tokenize([" ".join(label) for label in labels])[:, : num_positions + 1]
        text = teacher.text_features(tokens, tokens.argmax(dim=1))
        return Batch(
            views=views.to(device),
            labels=labels,
            token_ids=TOKENIZER.encode(labels).to(device),
            images=teacher.image_features(views),
            text={"eot": text["eot"]} | {name: text[name][:, 1:] for name in BLOCKS},
            device=device,
        )

    return decoded_ahead(variant, batch)


def load_online_teacher(
    cache: FeatureCache, device: torch.device, precision: str, image_taps: tuple[int, ...]
):
    from clipocr.precompute.teacher.clip import load_teacher

    return load_teacher(
        cache.spec.teacher.name, image_taps=image_taps, text_taps=TAPS, precision=precision,
        device=device,
    )  # fmt: skip


class Pictures(Dataset[tuple[torch.Tensor, str]]):
    """Views and labels, decoded where they are asked for."""

    def __init__(self, words: Path, samples: list[tuple[int, str]]) -> None:
        self._lmdb, self._samples = WordLmdb(words), samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, idx: int) -> tuple[torch.Tensor, str]:
        lmdb_index, label = self._samples[idx]
        image = decode_image(self._lmdb.image(lmdb_index) or b"")
        return torch.from_numpy(stretch(image).copy()), label


def decoded_ahead(variant: Variant, batch: Callable[[torch.Tensor, list[str]], Batch]) -> Epochs:
    """Decode on processes of their own, some batches ahead, and have the teacher look at each.

    Every epoch in the same order: another would have other longest labels, and the first step of a
    length sets up what later ones find.
    """
    pictures = DataLoader(
        Pictures(variant.words, labelled(variant)),
        batch_size=variant.setting.batch_size,
        num_workers=WORKERS,
        pin_memory=torch.device(variant.device).type == "cuda",
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    return lambda: (batch(views, list(labels)) for views, labels in pictures)


def labelled(variant: Variant) -> list[tuple[int, str]]:
    """Return (LMDB index, label) of the words that a round takes."""
    lmdb = WordLmdb(variant.words)
    indexes = range(1, variant.setting.num_rows + 1)
    return [(i, CHARSET.adapt(lmdb.label(i) or "")) for i in indexes]


BATCHES: dict[str, Callable[[Variant, FeatureCache], Epochs]] = {
    "student alone": ready_batches,
    "random targets": ready_batches,
    "cached": cached_batches,
    "online, tuned": tuned_batches,
    "online, official": official_batches,
}

if __name__ == "__main__":
    main()
