"""A loader over a whole cache, for tests that look at batches."""

from __future__ import annotations

from dataclasses import replace

import torch

from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.train.data.loader import CacheLoader
from clipocr.train.data.preflight import Preflight
from clipocr.train.methods.base import Needs, TextNeeds


def needing(
    images: tuple[str, ...] = (), text: tuple[str, ...] = (), tokenizer: str = "char"
) -> Needs:
    """Return needs by the names of arrays."""
    return Needs(images=images, text=TextNeeds(tokenizer=tokenizer, arrays=text))


def loader_of(
    cache: FeatureCache,
    needs: Needs,
    charset: Charset | None = None,
    *,
    max_label_length: int = 25,
    fraction: float = 1.0,
    views: int | None = None,
    units: dict[int, int] | None = None,
    **changes: object,
) -> CacheLoader:
    """Return a loader of batches of 12 from every unit and view; `changes` are its settings."""
    preflight = Preflight.check(
        cache,
        needs,
        charset=charset or Charset.load("36"),
        max_label_length=max_label_length,
        fraction=fraction,
        views=views,
    )
    if units is not None:
        preflight = replace(preflight, units=units)
    settings: dict[str, object] = {"batch_size": 12, "seed": 0, "device": torch.device("cpu")}
    return preflight.loader(**(settings | changes))
