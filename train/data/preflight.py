"""What a run needs of a cache, checked before its first step, and read as it trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch

from ...shared.cache.reader import FeatureCache
from ...shared.cache.text_spec import TextSpec
from ...shared.charset import Charset
from ...shared.errors import CacheMismatchError
from ..methods.base import Needs, Shapes
from ..models.tokenizer import LabelTokenizer
from .labels import TrainingLabels
from .loader import CacheLoader


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What of a cache is read; `check` has found that it is there."""

    cache: FeatureCache
    needs: Needs
    charset: Charset
    max_label_length: int
    text: TextSpec | None
    """The text table; None: the needs are labels only."""
    units: dict[int, int]
    """Units to draw rows from, and how many of each, from the first on."""
    num_views: int
    """K; epoch e reads view e mod K."""

    @classmethod
    def check(
        cls,
        cache: FeatureCache,
        needs: Needs,
        *,
        charset: Charset,
        max_label_length: int,
        fraction: float,
        views: int | None,
        batch_size: int = 1,
    ) -> Self:
        """Check that a cache has what is needed.

        Args:
            cache: Sealed or half built.
            needs: Of a method.
            charset: Characters that labels are written in.
            max_label_length: Of the longest label that is learned.
            fraction: Share of the rows to draw from.
            views: How many views to use; None: all that those units have.
            batch_size: Rows that come with different images of the pool.

        Raises:
            CacheError: it has not.
        """
        cache.require_images(needs.images, needs.pixels, needs.num_taps)
        if needs.view_px is not None:
            cache.require_view_size(needs.view_px)
        text = None
        if needs.text is not None:
            text = cache.require_text(
                charset,
                max_label_length,
                needs.text.tokenizer,
                needs.text.arrays,
                needs.text.template,
                needs.num_taps,
            )
        if needs.pool:
            cache.require_pool(batch_size)
        if needs.teacher_weights:
            cache.require_weights()
        units = cache.first_rows(fraction)
        held = cache.num_views_of(units)
        if views is not None and views > held:
            raise CacheMismatchError(
                f"{cache.storage} has {held} views of these units, this run needs {views}; pass "
                f"--views {held}, or run its cache build command again with --views {views}"
            )
        return cls(
            cache=cache,
            needs=needs,
            charset=charset,
            max_label_length=max_label_length,
            text=text,
            units=units,
            num_views=held if views is None else views,
        )

    def describe_unfinished(self) -> str:
        """Say that the cache is not finished, and how far it is; nothing if it is."""
        spec = self.cache.spec
        num_built = sum(map(spec.unit_size, self.cache.units()))
        if num_built == spec.num_rows:
            return ""
        return (
            f"{num_built:,} of {spec.num_rows:,} rows: {self.cache.storage} is not finished. Run "
            "its cache build command again, or go on if other processes are building the rest"
        )

    @property
    def shapes(self) -> Shapes:
        """Shapes of the arrays that are needed."""
        images = {name: self.cache.spec.image(name).row_shape for name in self.needs.images}
        text: dict[str, tuple[int, ...]] = {}
        if self.text is not None and self.needs.text is not None:
            for array in map(self.text.array, self.needs.text.arrays):
                has_all = self.text.is_prompt and array.rows == "prefix"
                of_sentence = (self.text.num_positions,) if has_all else ()
                text[array.name] = (*of_sentence, array.width)
        pool = self.cache.pool if self.needs.pool else None
        tokens = None if pool is None else pool.spec.images[0].row_shape
        return Shapes(
            images=images, text=text, pool=tokens, teacher_weights=self.cache.teacher_weights
        )

    @cached_property
    def _labels(self) -> TrainingLabels:
        """The labels, which all loaders share."""
        if self.text is None or self.needs.text is None:
            return TrainingLabels.without_features(self.cache, self.charset)
        return TrainingLabels.read(self.cache, self.text, self.needs.text.arrays)

    def loader(
        self,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        held_out: bool = False,
    ) -> CacheLoader:
        """Read the labels, and return the loader of their batches; see `CacheLoader`.

        Raises:
            UsageError: no row is usable, or there are more processes than rows in a batch.
        """
        return CacheLoader(
            self.cache,
            self._labels,
            self.needs,
            tokenizer=LabelTokenizer(self.charset, self.max_label_length),
            batch_size=batch_size,
            seed=seed,
            device=device,
            units=self.units,
            num_views=self.num_views,
            rank=rank,
            world_size=world_size,
            held_out=held_out,
        )
