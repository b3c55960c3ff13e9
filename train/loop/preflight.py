"""What a run needs of a cache, checked before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...shared.cache.reader import FeatureCache
from ...shared.cache.schema import TextSpec
from ...shared.errors import CacheMismatchError, CacheMissingError
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
    needs, teacher = config.method.needs(), cache.spec.teacher
    text_spec = None
    if needs.text is not None:
        text_spec = cache.require_text(
            config.charset, config.max_label_length, needs.text.tokenizer
        )
        cache.require_taps("text", _blocks(needs.text.arrays))
    cache.require_taps("image", _blocks(needs.images))
    units = choose_units(cache, config.fraction)
    return Preflight(
        cache=cache,
        needs=needs,
        text_spec=text_spec,
        shapes=Shapes(
            images=dict.fromkeys(needs.images, (teacher.num_image_tokens, teacher.image_width)),
            text={
                name: (teacher.eot_width if name == "eot" else teacher.text_width,)
                for name in (needs.text.arrays if needs.text else ())
            },
        ),
        units=units,
        num_views=choose_num_views(cache, units, config.views),
    )


def _blocks(arrays: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(name.removeprefix("block")) for name in arrays if name != "eot")


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
