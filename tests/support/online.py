"""The reference: a run that asks the teacher in every step, instead of a cache.

It shares the student, the losses and the loop with `clipocr train`, and nothing of what a cache is
made of but the codec: pictures come from their LMDBs, labels are split and tokenized here as in the
official code, and CLIP runs on every batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch

from clipocr.precompute.teacher.clip import Teacher
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.shared.data.images import decode_image, stretch
from clipocr.shared.data.word_lmdb import WordLmdb
from clipocr.train.data.batch import Batch
from clipocr.train.data.order import EpochOrder
from clipocr.train.models.tokenizer import LabelTokenizer

TOKENIZER = LabelTokenizer(Charset.load("36"), 25)


@dataclass(frozen=True, kw_only=True)
class OnlineLoader:
    """Yields what `CacheLoader` would, from pictures and a teacher. One clean view."""

    samples: list[tuple[WordLmdb, int, str]]
    """(source, LMDB index, label) of the usable rows, chunk by chunk in the cache's row order."""
    chunk_sizes: list[int]
    teacher: Teacher
    cache: FeatureCache
    """Whose codec is used."""
    batch_size: int
    seed: int
    context: int | None = None
    """Tokens of every text batch; None: as the longest label of each needs, as officially."""

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        order = EpochOrder(self.seed, epoch, np.asarray(self.chunk_sizes))
        starts = np.cumsum([0, *self.chunk_sizes])
        for batch_idx in range(first_batch, self.batches_per_epoch):
            start = batch_idx * self.batch_size
            places = np.arange(start, min(start + self.batch_size, len(self.samples)))
            places = places[np.argsort(places % 64, kind="stable")]
            chunks, rows = order.locate(places)
            yield self._batch([self.samples[i] for i in starts[chunks] + rows])

    def _batch(self, samples: list[tuple[WordLmdb, int, str]]) -> Batch:
        views = torch.from_numpy(
            np.stack([stretch(decode_image(lmdb.image(index))) for lmdb, index, _ in samples])
        )
        labels = [label for _, _, label in samples]
        images = {}
        for name, features in self.teacher.image_features(views).items():
            codec = self.cache.codec(name)
            images[name] = codec.decode(codec.encode(features))
        # Official system.py 276-277: as long as the longest label of the batch, padded with id 0.
        num_positions = max(map(len, labels)) + 1
        context = self.context or num_positions + 1
        tokens = torch.zeros(len(labels), context, dtype=torch.long)
        for row, label in zip(tokens, labels, strict=True):
            ids = open_clip.tokenize(" ".join(label))[0]
            row[: len(label) + 2] = ids[: len(label) + 2]
        text = self.teacher.text_features(tokens, tokens.argmax(dim=1))
        eot = text.pop("eot")
        return Batch(
            views=views,
            labels=labels,
            token_ids=TOKENIZER.encode(labels),
            images=images,
            text={name: f[:, 1 : num_positions + 1].half() for name, f in text.items()}
            | {"eot": eot.half()},
            device=views.device,
        )


def online_loader(
    cache: FeatureCache,
    sources: dict[str, Path],
    teacher: Teacher,
    *,
    batch_size: int,
    seed: int,
    context: int | None,
) -> OnlineLoader:
    """Return the loader whose rows are those of a cache, found in the sources by themselves.

    The order of rows is part of the cache's promise: sorted by the hash of seed, source and index.
    """
    charset, samples = Charset.load("36"), {}
    lmdbs = {name: WordLmdb(path) for name, path in sources.items()}
    for name, lmdb in lmdbs.items():
        for index in range(1, len(lmdb) + 1):
            samples[name, index] = charset.adapt(lmdb.label(index))
    names = [source.name for source in cache.spec.sources]
    chunks: list[list[tuple[WordLmdb, int, str]]] = []
    for unit_idx in cache.units():
        rows, first_row = cache.rows(unit_idx), cache.spec.unit_range(unit_idx)[0]
        bad = cache.unit(0, unit_idx).bad_rows
        for i, (source, index) in enumerate(
            zip(rows["source"].tolist(), rows["lmdb_index"].tolist(), strict=True)
        ):
            if i % cache.spec.chunk_rows == 0:
                chunks.append([])
            if first_row + i not in bad:
                name = names[source]
                chunks[-1].append((lmdbs[name], index, samples[name, index]))
    return OnlineLoader(
        samples=[sample for chunk in chunks for sample in chunk],
        chunk_sizes=[len(chunk) for chunk in chunks],
        teacher=teacher,
        cache=cache,
        batch_size=batch_size,
        seed=seed,
        context=context,
    )
