"""How fast this machine does each part of a build, from a few seconds of each.

Shapes: B rows of the sample, H and W height and width of a view.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...shared.cache.codecs.codec import Codec
from ...shared.cache.codecs.codecs import Pixels, feature_codec
from ...shared.cache.names import PIXELS
from ...shared.cache.shards import Array, ArrayWriter
from ...shared.cache.spec import CacheSpec
from ...shared.cache.storage import LocalStorage
from ..builder.calibrate import fit_rows, sample_chunks
from ..builder.scan import Scan
from ..builder.views import ViewMaker, make_stored_views
from ..teacher.clip import Teacher
from ..teacher.tokens import TokenTrie

_VIEWS_BUDGET_S = 1.5
_BATCH_BUDGET_S = 0.5
"""Batches grow until one takes this long, so that a slow teacher does not make a slow plan."""
_FIRST_BATCH = 16
_WRITTEN_ROWS = 2048


def make_views(spec: CacheSpec, scan: Scan, augment: str) -> tuple[Pixels, float]:
    """Make the views of the first rows, up to two chunks, while the budget lasts.

    They are compressed too if they are stored, as decoders do that. Shape: (B, H, W, 3), and
    views/s of one core.
    """
    of_batches = replace(spec, unit_rows=_FIRST_BATCH, chunk_rows=_FIRST_BATCH)
    maker = ViewMaker(scan.pictures, replace(spec.view, augment=augment), spec.seed)
    layout = of_batches.image_layouts(0).get(PIXELS)
    made: list[Pixels] = []
    started = time.perf_counter()
    first_rows = scan.order(spec.seed)[: 2 * spec.chunk_rows]
    for rows in sample_chunks(scan, first_rows, _FIRST_BATCH):
        chunk, _ = make_stored_views(maker, layout, rows)
        made.append(chunk.views)
        if time.perf_counter() - started > _VIEWS_BUDGET_S:
            break
    views = np.concatenate(made)
    return views, len(views) / (time.perf_counter() - started)


def measure_images(teacher: Teacher, views: Pixels, chunk_rows: int) -> float:
    """Return images/s through the teacher; what is stored of them is encoded where they are."""
    batch = torch.from_numpy(_repeated(views, chunk_rows))

    def work(size: int) -> None:
        teacher.image_features(batch[:size])
        if teacher.device.type == "cuda":
            torch.cuda.synchronize(teacher.device)

    return _rate(work, chunk_rows)


def measure_labels(teacher: Teacher, trie: TokenTrie, chunk_rows: int) -> float:
    """Return labels/s through the text encoder."""
    tokens, eot = (
        torch.from_numpy(_repeated(array[:chunk_rows], chunk_rows))
        for array in (trie.tokens, trie.eot_position)
    )
    return _rate(lambda n: _to_host(teacher.text_features(tokens[:n], eot[:n])), chunk_rows)


def _to_host(arrays: Mapping[str, torch.Tensor]) -> None:
    for features in arrays.values():
        features.cpu()


def measure_encoding(features: Mapping[str, torch.Tensor], codecs: Mapping[str, Codec]) -> float:
    """Return rows/s of all image arrays that their codecs encode.

    Tables, where there are any, are fitted to the same features. Shape: (B, T, D) each.
    """
    ready = {}
    for array, codec in codecs.items():
        basis = fit_rows(features[array]) if codec.has_table else None
        ready[array] = feature_codec(codec, basis.table(codec.record_bytes) if basis else None)

    def work(size: int) -> None:
        _to_host({name: coder.encode(features[name][:size]) for name, coder in ready.items()})

    return _rate(work, len(next(iter(features.values()))))


def measure_disk(spec: CacheSpec, stored: Array, array: str, folder: Path | None) -> float:
    """Return bytes/s that are published: written, synced and read back, as the builder does.

    What is written are some encoded rows of an image array, into a folder (None: that of temporary
    files) from which they are removed again.
    """
    num_rows = min(spec.unit_rows, -(-_WRITTEN_ROWS // spec.chunk_rows) * spec.chunk_rows)
    layout = replace(spec, num_rows=num_rows).image_layouts(0)[array]
    block = _repeated(stored, spec.chunk_rows)
    with tempfile.TemporaryDirectory(prefix=".clipocr-plan-", dir=folder) as tmp:
        started = time.perf_counter()
        writer = ArrayWriter(LocalStorage(Path(tmp)), layout)
        try:
            for _ in range(0, num_rows, spec.chunk_rows):
                writer.append(block)
            records = writer.publish()
        finally:
            writer.discard()
        seconds = time.perf_counter() - started
    return sum(record.num_bytes for record in records.values()) / seconds


def _rate(work: Callable[[int], None], largest: int) -> float:
    """Return how many items `work` does in a second, in batches as large as the budget allows."""
    size = min(_FIRST_BATCH, largest)
    work(size)  # The first call pays for what is set up once.
    while True:
        num_done, started = 0, time.perf_counter()
        while not num_done or time.perf_counter() - started < _BATCH_BUDGET_S:
            work(size)
            num_done += size
        rate = num_done / (time.perf_counter() - started)
        if size == largest or size / rate > _BATCH_BUDGET_S:
            return rate
        size = min(4 * size, largest)


def _repeated(rows: Array, num_rows: int) -> Array:
    """Return `rows` as often as it takes to make `num_rows` of them."""
    repeated: Array = rows[np.arange(num_rows) % len(rows)]
    return repeated
