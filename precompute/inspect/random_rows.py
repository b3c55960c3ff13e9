"""Rows of a cache, one at a time, for people to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ...shared.cache.codecs.codecs import Pixels, unfilter_pixels
from ...shared.cache.names import PIXELS
from ...shared.cache.reader import FeatureCache
from ...shared.data.word_lmdb import image_key
from ...shared.errors import CacheMissingError


@dataclass(frozen=True, kw_only=True)
class LabelledRow:
    """A row of a cache, and what it is of."""

    row_idx: int
    label: str
    source: str
    """Name of the LMDB."""
    lmdb_key: str


def random_rows(cache: FeatureCache, seed: int) -> Iterator[LabelledRow]:
    """Yield the rows of the finished units of view 0, in random order.

    The order is random by units, then within each: rows were permuted at the build, so any unit is
    a fair sample, and few units are read.

    Raises:
        CacheMissingError: no unit is finished.
    """
    rng, labels = np.random.default_rng(seed), cache.labels()
    if not cache.units():
        raise CacheMissingError(
            f"{cache.storage} has no finished unit yet; run its cache build command again"
        )
    for unit_idx in rng.permutation(cache.units()).tolist():
        start, stop = cache.spec.unit_range(unit_idx)
        columns = cache.rows(unit_idx)
        for at in rng.permutation(stop - start).tolist():
            yield LabelledRow(
                row_idx=start + at,
                label=labels[columns["label"][at]],
                source=cache.spec.sources[columns["source"][at]].name,
                lmdb_key=image_key(int(columns["lmdb_index"][at])).decode(),
            )


def problem_of(cache: FeatureCache, view_idx: int, row_idx: int) -> str:
    """Return why a row has nothing to show in a view, or nothing if it has."""
    unit_idx = row_idx // cache.spec.unit_rows
    if unit_idx not in cache.units(view_idx):
        return "not built yet"
    reason = cache.unit(view_idx, unit_idx).bad_rows.get(row_idx)
    return f"bad: {reason}" if reason is not None else ""


def view_of(cache: FeatureCache, view_idx: int, row_idx: int) -> Pixels:
    """Return the pixels of a row in a view. Shape: (32, 128, 3)."""
    stored = cache.image_reader(view_idx, PIXELS).rows(row_idx, row_idx + 1)
    return unfilter_pixels(torch.from_numpy(stored.copy()))[0].numpy()
