"""`clipocr latency`: time per picture, as in table 11 of the paper, on real pictures.

How long a recogniser decodes depends on the longest word of a batch, so noise would not do. Timed
apart: preprocessing (decoding and stretching, one picture at a time on one thread) and reading
(from uint8 views in memory to texts and confidences in memory). Beside each median stand the 10th
and the 90th percentile.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from math import ceil
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...shared.data.images import ImageProblemError, decode_image
from ...shared.errors import DataError
from ...shared.terminal import counted
from ..reading.readers import Reader, ViewReader
from .names import short_names
from .tables import ShownTable
from .test_sets import TestSet

NUM_WARM_UP_BATCHES = 3
MIN_BATCHES = 10
NUM_COUNTED = 16
"""Pictures on which multiplications are counted, at most: the first ones."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Milliseconds per picture."""

    p10: float
    median: float
    p90: float

    @classmethod
    def of_seconds(cls, times: Sequence[float]) -> Spread:
        """Return that of some times."""
        p10, median, p90 = (1000 * np.percentile(times, (10, 50, 90))).tolist()
        return cls(p10=p10, median=median, p90=p90)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.p10:.2f}-{self.p90:.2f})"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What one reader takes at one batch size."""

    model: str
    num_parameters: int | None
    gmacs: float | None
    """Multiplications with additions, in billions, per picture; None if they cannot be counted."""
    batch_size: int
    preprocessing_ms: Spread
    reading_ms: Spread

    @property
    def together_ms(self) -> float:
        """Of the medians."""
        return self.preprocessing_ms.median + self.reading_ms.median

    @property
    def images_per_s(self) -> float:
        """From the medians."""
        return 1000 / self.together_ms

    def to_json(self) -> dict[str, Any]:
        """Return all figures, not rounded."""
        return asdict(self) | {"together_ms": self.together_ms, "images_per_s": self.images_per_s}


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """What some readers take, and on which machine."""

    rows: Sequence[Latency]
    num_images: int
    settings: Sequence[str]
    """Arithmetic, machine and library of each reader."""

    @property
    def table(self) -> ShownTable:
        """A row per reader and batch size."""
        return ShownTable(
            headers=["model", "parameters", "GMACs", "batch size", "preprocessing", "reading",
                     "together", "images/s"],
            rows=[
                [
                    row.model,
                    "-" if row.num_parameters is None else f"{row.num_parameters:,}",
                    "-" if row.gmacs is None else f"{row.gmacs:.3f}",
                    f"{row.batch_size:,}",
                    str(row.preprocessing_ms),
                    str(row.reading_ms),
                    f"{row.together_ms:.2f}",
                    f"{row.images_per_s:,.0f}",
                ]
                for row in self.rows
            ],
            notes="Milliseconds per image, median (10th-90th percentile): preprocessing of "
            f"{counted(self.num_images, 'image')} one by one on one thread; reading of them all, "
            f"in {MIN_BATCHES} batches at least, after {NUM_WARM_UP_BATCHES} to warm up. GMACs: of "
            "matrix products and convolutions per image, read one by one, mean of "
            f"{counted(min(self.num_images, NUM_COUNTED), 'image')}. {'; '.join(self.settings)}.",
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return all figures, not rounded."""
        return {
            "num_images": self.num_images,
            "settings": list(self.settings),
            "rows": [row.to_json() for row in self.rows],
        }


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
    readers: Sequence[ViewReader], pictures: Sequence[bytes], batch_sizes: Sequence[int]
) -> LatencyReport:
    """Time preprocessing and reading of each reader at each batch size.

    Pictures are repeated where a batch needs more.
    """
    rows = []
    for name, reader in zip(short_names(readers), readers, strict=True):
        views, times = [], []
        for encoded in pictures:
            start = perf_counter()
            views.append(reader.prepare(decode_image(encoded)))
            times.append(perf_counter() - start)
        gmacs = count_gmacs(reader, views[:NUM_COUNTED]) if isinstance(reader, Reader) else None
        for size in batch_sizes:
            num_batches = max(MIN_BATCHES, ceil(len(views) / size))
            reading = _measure_batches(reader, views, size, num_batches)
            rows.append(
                Latency(
                    model=name,
                    num_parameters=reader.num_parameters,
                    gmacs=gmacs,
                    batch_size=size,
                    preprocessing_ms=Spread.of_seconds(times),
                    reading_ms=Spread.of_seconds(reading),
                )
            )
    return LatencyReport(
        rows=rows,
        num_images=len(pictures),
        settings=list(dict.fromkeys(map(_setting, readers))),
    )


def count_gmacs(reader: Reader, views: Sequence[np.ndarray]) -> float:
    """Return the multiplications with additions per picture, in billions, read one by one.

    Those of matrix products, attention among them, and of convolutions.
    """
    weights = [weight for weight in reader.recogniser.reading_parameters() if weight.requires_grad]
    for weight in weights:
        # The counter hooks into whatever asks for gradients, and fails where there are none.
        weight.requires_grad_(False)
    try:
        # As products of matrices, because a CPU's own kernel of attention is not counted.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for view in views:
                reader.read_views(torch.from_numpy(np.stack([view])))
    finally:
        for weight in weights:
            weight.requires_grad_(True)
    return float(counter.get_total_flops()) / 2e9 / len(views)


def _measure_batches(
    reader: ViewReader, views: Sequence[np.ndarray], batch_size: int, num_batches: int
) -> list[float]:
    """Return seconds per picture of each batch."""
    endless = cycle(views)
    times = []
    for number in range(NUM_WARM_UP_BATCHES + num_batches):
        batch = torch.from_numpy(np.stack(list(islice(endless, batch_size))))
        start = perf_counter()
        # Texts and confidences are on the CPU when it returns: a GPU has finished by then.
        reader.read_views(batch)
        if number >= NUM_WARM_UP_BATCHES:
            times.append((perf_counter() - start) / batch_size)
    return times


def _setting(reader: ViewReader) -> str:
    if reader.device.type == "cuda":
        machine = torch.cuda.get_device_name(reader.device)
    else:
        machine = f"{platform.machine()} CPU, {counted(torch.get_num_threads(), 'thread')}"
    return f"{reader.library}, {reader.precision}, {machine}"
