"""What a run needs of a cache, and what of it there is."""

from __future__ import annotations

from collections.abc import Sequence

from ...shared.cache.reader import FeatureCache
from ...shared.cache.schema import TextSpec
from ...shared.errors import CacheMismatchError, CacheMissingError
from .config import TrainConfig, TrainPlace


def open_cache(place: TrainPlace) -> FeatureCache:
    """Open the cache that runs at `place` train on."""
    return FeatureCache.open(
        place.cache, cache_dir=place.cache_dir, max_cache_bytes=place.max_cache_bytes
    )


def require_targets(config: TrainConfig, cache: FeatureCache) -> TextSpec:
    """Check that a cache has everything a run follows; return the text table it needs.

    Raises:
        CacheError: it has not.
    """
    method = config.method
    text = cache.require_text(config.charset, config.max_label_length, method.tokens)
    cache.require_taps("image", method.needed_image_taps)
    cache.require_taps("text", method.needed_text_taps)
    choose_num_views(cache, choose_units(cache, config.fraction), config.num_views)
    return text


def choose_units(cache: FeatureCache, fraction: float) -> list[int]:
    """Return the first `fraction` of the committed units, at least one.

    Rows were permuted at build, so any units are a fair sample.

    Raises:
        CacheMissingError: nothing is built yet.
    """
    units = cache.units()
    if not units:
        raise CacheMissingError(
            f"{cache.storage} has no finished unit yet; run its cache build command again"
        )
    return units[: max(1, round(fraction * len(units)))]


def choose_num_views(cache: FeatureCache, units: Sequence[int], wanted: int | None) -> int:
    """Return how many views of `units` to use: `wanted`, or all that are there.

    Raises:
        CacheMismatchError: there are fewer than wanted.
    """
    held = sum(set(units) <= set(cache.units(view_idx)) for view_idx in range(cache.num_views))
    if wanted is not None and wanted > held:
        raise CacheMismatchError(
            f"{cache.storage} has {held} views of these units, this run needs {wanted}; pass "
            f"--views {held}, or run its cache build command again with --views {wanted}"
        )
    return held if wanted is None else wanted
