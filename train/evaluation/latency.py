"""`clipocr latency`: time per picture, as in table 11 of the paper, on real pictures.

How long a recogniser decodes depends on the longest word of a batch, so noise would not do. Timed
apart: preprocessing (decoding and stretching, one picture at a time on one thread) and reading
(from uint8 views in memory to texts and confidences in memory). Every figure is a median.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle, islice
from math import ceil
from statistics import median
from time import perf_counter

import numpy as np
import torch

from ...shared.data.images import ImageProblemError, decode_image
from ...shared.errors import DataError
from ...shared.terminal import counted
from ..reading.readers import Reader
from .tables import ShownTable
from .test_sets import TestSet

NUM_WARM_UP_BATCHES = 3
MIN_BATCHES = 5


def load_pictures(test_sets: Sequence[TestSet], num_images: int) -> list[bytes]:
    """Return encoded pictures, evenly from all sets; those that cannot be decoded are left out.

    Raises:
        DataError: none can be decoded.
    """
    every = [(test_set, some) for test_set in test_sets for some in test_set.pictures]
    num_images = min(num_images, len(every))
    pictures = []
    for i in range(num_images):
        test_set, picture = every[i * len(every) // num_images]
        with suppress(ImageProblemError):
            test_set.load(picture)
            pictures.append(test_set.image(picture.image))
    if not pictures:
        raise DataError(f"{test_sets[0].source.path}: none of its pictures can be decoded")
    return pictures


def measure_latency(
    reader: Reader, pictures: Sequence[bytes], batch_sizes: Sequence[int]
) -> ShownTable:
    """Time preprocessing and reading; return a row per batch size.

    Each is measured on `MIN_BATCHES` batches at least, after `NUM_WARM_UP_BATCHES` that are not
    counted. Pictures are repeated where a batch needs more.
    """
    views, times = [], []
    for encoded in pictures:
        start = perf_counter()
        views.append(reader.prepare(decode_image(encoded)))
        times.append(perf_counter() - start)
    preprocessing_ms = 1000 * median(times)
    rows = []
    for size in batch_sizes:
        num_batches = max(MIN_BATCHES, ceil(len(views) / size))
        reading_ms = _measure_batches(reader, views, size, num_batches)
        together_ms = preprocessing_ms + reading_ms
        figures = (f"{ms:.2f}" for ms in (preprocessing_ms, reading_ms, together_ms))
        rows.append([f"{size:,}", *figures, f"{1000 / together_ms:,.0f}"])
    return ShownTable(
        headers=["batch size", "preprocessing", "reading", "together", "images/s"],
        rows=rows,
        notes=f"Milliseconds per image, medians: preprocessing of {len(pictures):,} images one by "
        f"one on one thread; reading of them all, in {MIN_BATCHES} batches at least, after "
        f"{NUM_WARM_UP_BATCHES} to warm up. {_setting(reader)}.",
    )


def _measure_batches(
    reader: Reader, views: Sequence[np.ndarray], batch_size: int, num_batches: int
) -> float:
    """Return milliseconds per picture, the median over the batches."""
    endless = cycle(views)
    times = []
    for number in range(NUM_WARM_UP_BATCHES + num_batches):
        batch = torch.from_numpy(np.stack(list(islice(endless, batch_size))))
        start = perf_counter()
        # Texts and confidences are on the CPU when it returns: a GPU has finished by then.
        reader.read_views(batch)
        if number >= NUM_WARM_UP_BATCHES:
            times.append(perf_counter() - start)
    return 1000 * median(times) / batch_size


def _setting(reader: Reader) -> str:
    if reader.device.type == "cuda":
        machine = torch.cuda.get_device_name(reader.device)
    else:
        machine = f"{platform.machine()} CPU, {counted(torch.get_num_threads(), 'thread')}"
    return (
        f"{reader.num_parameters:,} parameters, {reader.precision}, {machine}, "
        f"PyTorch {torch.__version__}"
    )
