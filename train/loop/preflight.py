"""What a run needs of a cache, checked before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...shared.cache.reader import FeatureCache
from ...shared.cache.text_spec import TextSpec
from ...shared.errors import CacheMismatchError
from ..data.labels import TrainingLabels
from ..methods.base import Needs, Shapes
from .config import TrainConfig, TrainPlace


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What a run reads of a cache; that it is there has been checked."""

    cache: FeatureCache
    needs: Needs
    text_spec: TextSpec | None
    """The text table; None: the method reads none."""
    shapes: Shapes
    units: list[int]
    num_views: int

    def read_labels(self, config: TrainConfig) -> TrainingLabels:
        """Read the labels, and the text features that the method needs."""
        if self.needs.text is None or self.text_spec is None:
            return TrainingLabels.without_features(self.cache, config.charset)
        return TrainingLabels.read(self.cache, config.charset, self.needs.text, self.text_spec)


def open_cache(place: TrainPlace) -> FeatureCache:
    """Open the cache that runs at `place` train on."""
    return FeatureCache.open(
        place.cache, cache_dir=place.cache_dir, max_cache_bytes=place.cache_bytes
    )


def check_cache(config: TrainConfig, cache: FeatureCache) -> Preflight:
    """Check that a cache has everything a run needs, and return what the run will read of it.

    Raises:
        CacheError: it has not.
    """
    needs = config.method.needs()
    text_spec, text_shapes = None, {}
    if needs.text is not None:
        text_spec = cache.require_text(
            config.charset, config.max_label_length, needs.text.tokenizer, needs.text.arrays
        )
        text_shapes = {name: (text_spec.array(name).width,) for name in needs.text.arrays}
    cache.require_images(needs.images)
    units = cache.first_units(config.fraction)
    return Preflight(
        cache=cache,
        needs=needs,
        text_spec=text_spec,
        shapes=Shapes(
            images={name: cache.spec.image(name).row_shape for name in needs.images},
            text=text_shapes,
        ),
        units=units,
        num_views=choose_num_views(cache, units, config.views),
    )


def choose_num_views(cache: FeatureCache, units: Sequence[int], wanted: int | None) -> int:
    """Return how many views of `units` to use: `wanted`, or all that are there.

    Raises:
        CacheMismatchError: there are fewer than wanted.
    """
    held = cache.num_views_of(units)
    if wanted is not None and wanted > held:
        raise CacheMismatchError(
            f"{cache.storage} has {held} views of these units, this run needs {wanted}; pass "
            f"--views {held}, or run its cache build command again with --views {wanted}"
        )
    return held if wanted is None else wanted
