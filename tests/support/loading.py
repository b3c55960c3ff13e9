"""A loader over a whole cache, for tests that look at batches."""

from __future__ import annotations

import torch

from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.train.data.labels import TrainingLabels
from clipocr.train.data.loader import CacheLoader
from clipocr.train.loop.preflight import choose_num_views
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
    **changes: object,
) -> CacheLoader:
    """Return a loader of batches of 12 from every unit and view; `changes` are its settings."""
    charset = charset or Charset.load("36")
    if needs.text is None:
        labels = TrainingLabels.without_features(cache, charset)
    else:
        spec = cache.require_text(charset, max_label_length, needs.text.tokenizer)
        labels = TrainingLabels.read(cache, charset, needs.text, spec)
    units = cache.first_units(1.0)
    settings: dict[str, object] = {
        "batch_size": 12,
        "seed": 0,
        "device": torch.device("cpu"),
        "units": units,
        "num_views": choose_num_views(cache, units, None),
    }
    return CacheLoader(
        cache, labels, needs, max_label_length=max_label_length, **(settings | changes)
    )
