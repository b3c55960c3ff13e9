"""Train a small CLIP on words, for features with real structure where no CLIP weights can be had.

Random weights give features with an unreal spectrum. This trains a narrow CLIP contrastively on
word pictures and their character-split labels, or prompts of them, at 32x128 through the crop of
its positions, exactly as a teacher is used later:

    python benchmarks/small_clip.py small_clip.pt --data WORDS --minutes 20
    python benchmarks/with_small_clip.py cache build --data WORDS --out words.cache \\
        --teacher ViT-words-16/small_clip.pt --activation gelu --image-taps 2,4,6 --text-taps 1,2,3

Prints how often the right label of a batch is the nearest one, on words held out of training.
The architecture, which open_clip does not know by itself, is `ViT-words-16.json` beside this file.
"""

from __future__ import annotations

import argparse
import math
import time
import zlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipocr.precompute.teacher.tokens import TeacherTokenizer
from clipocr.shared.cache.names import TEMPLATE
from clipocr.shared.charset import Charset
from clipocr.shared.clip.encoders import crop_positions
from clipocr.shared.data.images import ImageProblemError, decode_image, stretch
from clipocr.shared.data.word_lmdb import WordLmdb, find_named_lmdbs
from clipocr.shared.device import choose_device
from clipocr.shared.geometry import CLIP_MEAN, CLIP_STD, normalize

TEACHER = "ViT-words-16"
ACTIVATION = "gelu"
IMAGE_TAPS = (2, 4, 6)
TEXT_TAPS = (1, 2, 3)

HELD_OUT_EVERY = 20
WARMUP_STEPS = 50
LOG_EVERY_STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="root of LMDBs; may be repeated"
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokenizer", choices=("char", "prompt"), default="char")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = choose_device(args.device)
    register()
    model = open_clip.create_model(TEACHER).to(device)
    views, tokens, words = load_words(args.data, model.context_length, args.tokenizer)
    views, tokens = views.to(device), tokens.to(device)
    # By the word, so that no picture of a word that is tested on is trained on.
    is_held_out = np.asarray([zlib.crc32(w.encode()) % HELD_OUT_EVERY == 0 for w in words])
    train, test = (torch.from_numpy(np.flatnonzero(part)) for part in (~is_held_out, is_held_out))
    print(f"{len(train):,} pictures to train on, {len(test):,} of other words to test on; {device}")
    # Of 49,408 embeddings words use forty; they may stay as they are, which saves half the memory.
    model.token_embedding.requires_grad_(False)
    positions = model.visual.positional_embedding.data
    cropped = crop_positions(positions, model.visual.conv1.kernel_size)
    model.visual.positional_embedding = nn.Parameter(cropped)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        fused=True,
    )
    started = time.perf_counter()
    step, losses = 0, []
    while (share := (time.perf_counter() - started) / (60 * args.minutes)) < 1:
        batch = train[torch.randint(len(train), (args.batch_size,))]
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * warm * (1 + math.cos(math.pi * share)) / 2
        logits = similarities(model, views[batch], tokens[batch])
        right = torch.arange(len(batch), device=device)
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        optimizer.zero_grad()
        with attention_kernel(device):
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.detach())
        step += 1
        if step % LOG_EVERY_STEPS == 0:
            rate = step * args.batch_size / (time.perf_counter() - started)
            top1 = accuracy(model, views, tokens, test, args.batch_size)
            print(
                f"step {step}, {rate:.0f} samples/s, loss {torch.stack(losses).mean():.3f} "
                f"(chance {math.log(args.batch_size):.3f}), held-out top-1 of a batch: "
                f"{top1:.1f} % (chance {100 / args.batch_size:.1f} %)",
                flush=True,
            )
            losses.clear()
    # Words use the class row and the first rows of the grid, so these come first.
    positions[: len(cropped)] = model.visual.positional_embedding.data
    model.visual.positional_embedding = nn.Parameter(positions)
    torch.save(model.state_dict(), args.out)
    print(f"Wrote {args.out}: {TEACHER} after {step} steps of {args.batch_size}.")


def register() -> None:
    """Make `TEACHER` known to open_clip."""
    open_clip.add_model_config(Path(__file__).with_name(f"{TEACHER}.json"))


def load_words(
    roots: list[Path], context_length: int, tokenizer: str
) -> tuple[Tensor, Tensor, list[str]]:
    """Return views (N, 32, 128, 3), tokens (N, C) and labels of every usable word."""
    charset, template = Charset.load("36"), TEMPLATE if tokenizer == "prompt" else ""
    reads = TeacherTokenizer(tokenizer, context_length - 2, template, context_length)
    views, tokens, words = [], [], []
    for path in find_named_lmdbs(tuple(roots)).values():
        lmdb = WordLmdb(path)
        for index in range(1, len(lmdb) + 1):
            word = charset.adapt(lmdb.label(index) or "")
            if not 1 <= len(word) <= context_length - 2:
                continue
            try:
                views.append(stretch(decode_image(lmdb.image(index) or b"")))
            except ImageProblemError:
                continue
            sequence = reads.tokenize(word)
            assert sequence is not None
            tokens.append(sequence.ids + [0] * (context_length - len(sequence.ids)))
            words.append(word)
    return torch.from_numpy(np.stack(views)), torch.tensor(tokens), words


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """On CPUs the backward pass of fused attention is far slower than that of its parts."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def similarities(model: nn.Module, views: Tensor, tokens: Tensor) -> Tensor:
    """Return logits of every picture with every label. Shape: (B, B)."""
    with attention_kernel(views.device), torch.autocast(views.device.type, torch.bfloat16):
        image = model.encode_image(normalize(views, CLIP_MEAN, CLIP_STD), normalize=True)
        text = model.encode_text(tokens, normalize=True)
    return model.logit_scale.exp() * image.float() @ text.float().T


@torch.no_grad()
def accuracy(
    model: nn.Module, views: Tensor, tokens: Tensor, rows: Tensor, batch_size: int
) -> float:
    """Return how often the right one of a batch's labels is nearest, in percent."""
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    rows = rows[: 4 * batch_size]
    right = 0
    for batch in rows.split(batch_size):
        logits = similarities(model, views[batch], tokens[batch])
        nearest = logits.argmax(1).cpu()
        right += sum(torch.equal(tokens[batch[i]], tokens[batch[j]]) for i, j in enumerate(nearest))
    return 100 * right / len(rows)


if __name__ == "__main__":
    main()
