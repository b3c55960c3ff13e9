"""A training loop of your own: the batches are a cache's, and all else is plain PyTorch.
Here a small network learns to read, and to see in a word what the teacher sees in it.

    python examples/own_loop.py words.cache
"""

import sys

from torch import nn, optim
from torch.nn.functional import cosine_similarity, cross_entropy

import clipocr


def main(cache: str, num_epochs: int = 10) -> None:
    """Train, print both losses after each epoch, and read the last picture."""
    words = clipocr.open_cache(cache)
    loader = words.loader(batch_size=32, images=["block9"], device="cpu")
    tokenizer, teacher_width = loader.tokenizer, words[0].images["block9"].shape[1]
    size = (tokenizer.max_label_length + 1, tokenizer.num_classes)
    look = nn.Sequential(nn.Conv2d(3, 64, 8, stride=8), nn.GELU(), nn.Flatten())
    read = nn.Sequential(nn.Linear(64 * 4 * 16, size[0] * size[1]), nn.Unflatten(1, size))
    guess = nn.Linear(64 * 4 * 16, teacher_width)
    model = nn.ModuleList([look, read, guess])
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(num_epochs):
        for batch in loader.epoch(epoch):
            seen, targets = look(batch.normalized_views()), batch.token_ids[:, 1:]
            logits = read(seen)[:, : targets.shape[1]]
            reading = cross_entropy(logits.mT, targets, ignore_index=tokenizer.pad_id)
            seeing = 1 - cosine_similarity(guess(seen), batch.images["block9"].mean(dim=1)).mean()
            optimizer.zero_grad()
            (reading + seeing).backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: reading {reading:.3f}, seeing {seeing:.3f}")
    print(batch.labels[-1], "is read as", tokenizer.decode(logits.softmax(dim=2))[0][-1])


if __name__ == "__main__":
    main(sys.argv[1])
