"""Train a small CLIP on words, for features with real structure where no CLIP weights can be had.

Random weights give features with an unreal spectrum. This trains one of open_clip's own small
models contrastively on word pictures and their character-split labels, at 32x128 through the crop
of its positions, exactly as a teacher is used later:

    python benchmarks/small_clip.py DATA small_clip.pt --minutes 15
    clipocr cache build --data DATA --teacher ViT-S-16-alt/small_clip.pt --activation gelu ...

Prints how often the right label of a batch is the nearest one, on words held out of training.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipocr.precompute.teacher import CLIP_MEAN, CLIP_STD, crop_positions
from clipocr.precompute.tokens import CharacterTokenizer
from clipocr.shared.charset import Charset
from clipocr.shared.geometry import normalize
from clipocr.shared.images import ImageProblemError, decode_image, stretch
from clipocr.shared.words import WordLmdb, find_named_lmdbs

CONTEXT = 27
HELD_OUT_EVERY = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="ViT-S-16-alt")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views, tokens, words = load_words(args.data)
    is_held_out = np.asarray([sum(map(ord, word)) % HELD_OUT_EVERY == 0 for word in words])
    train, test = (torch.from_numpy(np.flatnonzero(part)) for part in (~is_held_out, is_held_out))
    print(f"{len(train):,} pictures to train on, {len(test):,} of other words to test on; {device}")
    model = open_clip.create_model(args.model).to(device)
    original = shrink(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    started = time.perf_counter()
    step, losses = 0, []
    while (share := (time.perf_counter() - started) / (60 * args.minutes)) < 1:
        batch = train[torch.randint(len(train), (args.batch_size,))]
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * warm * (1 + math.cos(math.pi * share)) / 2
        logits = similarities(model, views[batch].to(device), tokens[batch].to(device))
        right = torch.arange(len(batch), device=device)
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(float(loss.detach()))
        step += 1
        if step % 50 == 0:
            rate = step * args.batch_size / (time.perf_counter() - started)
            top1 = accuracy(model, views, tokens, test, args.batch_size)
            print(
                f"step {step}, {rate:.0f} samples/s, loss {np.mean(losses[-50:]):.3f} (chance "
                f"{math.log(args.batch_size):.3f}), held-out top-1 of a batch: {top1:.1f} %",
                flush=True,
            )
    grow(model, original)
    torch.save(model.state_dict(), args.out)
    print(f"Wrote {args.out}: {args.model} after {step} steps of {args.batch_size}.")


def load_words(root: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Return views (N, 32, 128, 3), tokens (N, 27) and labels of every usable word."""
    charset, tokenizer = Charset.load("36"), CharacterTokenizer()
    views, tokens, words = [], [], []
    for path in find_named_lmdbs((root,)).values():
        lmdb = WordLmdb(path)
        for index in range(1, len(lmdb) + 1):
            word = charset.adapt(lmdb.label(index) or "")
            if not 1 <= len(word) <= CONTEXT - 2:
                continue
            try:
                views.append(stretch(decode_image(lmdb.image(index) or b"")))
            except ImageProblemError:
                continue
            ids, _ = tokenizer.tokenize(word)
            tokens.append(ids + [0] * (CONTEXT - len(ids)))
            words.append(word)
    return torch.from_numpy(np.stack(views)), torch.tensor(tokens), words


def similarities(model: nn.Module, views: Tensor, tokens: Tensor) -> Tensor:
    image = F.normalize(model.encode_image(normalize(views, CLIP_MEAN, CLIP_STD)), dim=-1)
    text = F.normalize(model.encode_text(tokens), dim=-1)
    return model.logit_scale.exp() * image @ text.T


@torch.no_grad()
def accuracy(
    model: nn.Module, views: Tensor, tokens: Tensor, rows: Tensor, batch_size: int
) -> float:
    """Return how often the right one of a batch's labels is nearest, in percent."""
    device = next(model.parameters()).device
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    rows = rows[: 4 * batch_size]
    right = 0
    for batch in rows.split(batch_size):
        logits = similarities(model, views[batch].to(device), tokens[batch].to(device))
        nearest = logits.argmax(1).cpu()
        right += sum(torch.equal(tokens[batch[i]], tokens[batch[j]]) for i, j in enumerate(nearest))
    return 100 * right / len(rows)


def shrink(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Cut positions and mask to what words need; return what they were."""
    visual = model.visual
    original = visual.positional_embedding.data, model.positional_embedding.data, model.attn_mask
    visual.positional_embedding = nn.Parameter(
        crop_positions(original[0], visual.conv1.kernel_size)
    )
    model.positional_embedding = nn.Parameter(original[1][:CONTEXT].clone())
    model.attn_mask = original[2][:CONTEXT, :CONTEXT]
    return original


def grow(model: nn.Module, original: tuple[Tensor, Tensor, Tensor]) -> None:
    """Put the trained positions back to where `crop_positions` finds them."""
    image, text, mask = (tensor.clone() for tensor in original)
    grid = round((len(image) - 1) ** 0.5)
    trained = model.visual.positional_embedding.data
    patch = model.visual.conv1.kernel_size
    rows, columns = 32 // patch[0], 128 // patch[1]
    image[0] = trained[0]
    image[1:].view(grid, grid, -1)[:rows, :columns] = trained[1:].view(rows, columns, -1)
    text[:CONTEXT] = model.positional_embedding.data
    model.visual.positional_embedding = nn.Parameter(image)
    model.positional_embedding = nn.Parameter(text)
    model.attn_mask = mask


if __name__ == "__main__":
    main()
