"""`clipocr.open_cache`: the words of a feature cache, to look at and to train on.

Shapes: H and W height and width of a view, T teacher image tokens, D teacher width, L label
positions, E joint width.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from ...shared.cache.names import PIXELS
from ...shared.cache.reader import FeatureCache
from ...shared.cache.text_spec import TextSpec, TextTable
from ...shared.cache.words import WordReader
from ...shared.charset import Charset
from ...shared.device import choose_device
from ...shared.errors import CacheMismatchError
from ..loop.config import TrainConfig, TrainPlace
from ..methods.base import Needs, TextNeeds
from .loader import CacheLoader
from .preflight import Preflight

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedWord:
    """A word of a cache: its picture as teacher and student see it, and the teacher's features."""

    source: str
    """Name of the LMDB it came from."""
    lmdb_index: int
    """Its number there, from 1."""
    label: str
    """As written there."""
    view: npt.NDArray[np.uint8] | None
    """RGB; None: the cache holds no pixels. Shape: (H, W, 3)."""
    images: Mapping[str, _Floats] = field(repr=False)
    """Image arrays by name, decoded. Shape: (T, D) each."""
    _words: CachedWords = field(repr=False)
    _label_idx: int = field(repr=False)

    @property
    def adapted_label(self) -> str:
        """The label as the text table's charset has it; empty if that leaves nothing of it.

        The first use of this or of `text` reads the whole text table into memory.
        """
        return self._words.text_of(self._label_idx)[0]

    @property
    def text(self) -> Mapping[str, _Floats]:
        """Text arrays by name; none if there is no `adapted_label`.

        An array with a row per position has one for each character (with word tokens for each BPE
        token), for EOT, and for the pads that the loss may include. Shape: (L, D). One with a row
        per label, such as ``eot``: Shape: (E,).
        """
        return self._words.text_of(self._label_idx)[1]


class CachedWords(Sequence[CachedWord]):
    """All words of one view of a cache whose pictures could be decoded, in the cache's order.

    That order was permuted once, when the cache was built: any slice is a fair sample.
    """

    def __init__(
        self,
        cache: FeatureCache,
        *,
        view: int,
        images: Sequence[str] | None,
        text_spec: TextSpec | None,
    ) -> None:
        self.cache = cache
        self.text_spec = text_spec
        """The text table that `CachedWord.text` is of; None: there is none."""
        self.image_names = tuple(cache.spec.image_names if images is None else images)
        """Image arrays that words have."""
        self._reader = WordReader(cache, self.image_names)
        self._view = view
        self._usable = []
        """Rows whose pictures could be decoded, unit by unit."""
        for unit in cache.units(view):
            bad = list(cache.unit(view, unit).bad_rows)
            self._usable.append(np.setdiff1d(np.arange(*cache.spec.unit_range(unit)), bad))
        self._ends = list(itertools.accumulate(map(len, self._usable)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> CachedWord: ...
    @overload
    def __getitem__(self, index: slice) -> list[CachedWord]: ...
    def __getitem__(self, index: int | slice) -> CachedWord | list[CachedWord]:
        """Return a word, or a list of those in a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"word {index} of {len(self)}")
        place = bisect.bisect_right(self._ends, i)
        # Negative, and so counted from the end of the unit.
        row = self._reader.row(int(self._usable[place][i - self._ends[place]]))
        images = self._reader.arrays(self._view, row.idx)
        return CachedWord(
            source=row.source,
            lmdb_index=row.lmdb_index,
            label=row.label,
            view=images.pop(PIXELS, None),
            images=images,
            _words=self,
            _label_idx=row.label_idx,
        )

    def __iter__(self) -> Iterator[CachedWord]:
        return (self[i] for i in range(len(self)))

    def text_of(self, label_idx: int) -> tuple[str, Mapping[str, _Floats]]:
        """Return a label of the cache under the text table's charset, and its text arrays."""
        table = self._table
        if table is None or (number := int(table.of_label[label_idx])) < 0:
            return "", {}
        rows = {"string": number, "prefix": table.nodes[number]}
        return table.strings[number], {
            name: values[rows[table.spec.array(name).rows]].astype(np.float32)
            for name, values in table.arrays.items()
        }

    def loader(
        self,
        *,
        batch_size: int = TrainConfig.batch_size,
        seed: int = TrainConfig.seed,
        images: Sequence[str] = (),
        text: Sequence[str] = (),
        pixels: bool = True,
        charset: str | Charset = TrainConfig.charset,
        tokenizer: str = "char",
        max_label_length: int = TrainConfig.max_label_length,
        fraction: float = TrainConfig.fraction,
        views: int | None = None,
        device: str = TrainPlace.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> CacheLoader:
        """Return what `clipocr.train` reads its batches from, for a training loop of one's own::

            loader = cache.loader(batch_size=320, images=["block3", "block9"], text=["eot"])
            for epoch in range(5):
                for batch in loader.epoch(epoch):
                    batch.labels, batch.views, batch.images["block3"], batch.text["eot"]

        Its `tokenizer` makes ``batch.token_ids`` of the labels, and labels of probabilities.

        Args:
            batch_size: Of all processes together.
            seed: Decides the order.
            images: Image arrays to read.
            text: Text arrays to read; none: labels only.
            pixels: Whether to read the views.
            charset: Characters that labels are written in; words of which it leaves nothing are
                left out.
            tokenizer: How the teacher read the labels, ``char`` or ``word``.
            max_label_length: Words with longer labels are left out.
            fraction: Share of the cache's rows to read.
            views: K; epoch e reads view e mod K. None: all the cache has.
            device: Where batches go: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            rank: Which of several processes this is.
            world_size: Number of processes that share each batch.

        Raises:
            CacheError: the cache lacks something of this.
            UsageError: no word is left.
        """
        if not isinstance(charset, Charset):
            charset = Charset.load(charset)
        preflight = Preflight.check(
            self.cache,
            Needs(
                images=tuple(images),
                pixels=pixels,
                view_px=None,
                text=TextNeeds(tokenizer=tokenizer, arrays=tuple(text)) if text else None,
            ),
            charset=charset,
            max_label_length=max_label_length,
            fraction=fraction,
            views=views,
        )
        return preflight.loader(
            batch_size=batch_size,
            seed=seed,
            device=choose_device(device),
            rank=rank,
            world_size=world_size,
        )

    @cached_property
    def _table(self) -> TextTable | None:
        return None if self.text_spec is None else self.cache.text_table(self.text_spec.name)


def open_cache(
    path: str | os.PathLike[str],
    *,
    view: int = 0,
    images: Sequence[str] | None = None,
    text: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int = TrainPlace.cache_bytes,
) -> CachedWords:
    """Open a feature cache, sealed or half built, to look at its words or to train on them.

        cache = clipocr.open_cache("words.cache")
        word = cache[0]
        word.label, word.view, word.images["block9"], word.text["eot"]

    Opening is cheap: chunks are read when words are asked for.

    Args:
        path: Folder, or an address such as ``s3://bucket/words.cache``.
        view: Which view of each picture.
        images: Image arrays to read with each word, such as ``block9``; None: all there are.
        text: Text table, such as ``char-36``; None: the cache's first.
        cache_dir: Where copies of what is read from an address are kept; None:
            ``~/.cache/clipocr``.
        cache_bytes: Most bytes of such copies.

    Returns:
        A sequence of words, with a `loader` of batches.

    Raises:
        CacheError: there is none, it is damaged or unavailable, or lacks something of this.
    """
    place = str(path)
    cache = FeatureCache.open(
        place if "://" in place else Path(path),
        cache_dir=None if cache_dir is None else Path(cache_dir),
        max_cache_bytes=cache_bytes,
    )
    specs = {spec.name: spec for spec in cache.text_specs()}
    if text is None:
        spec = next(iter(specs.values()), None)
    elif text in specs:
        spec = specs[text]
    else:
        raise CacheMismatchError(
            f"{cache.storage} has no text table {text!r}, only {', '.join(specs) or 'none'}; add "
            f"one with: {cache.command_that_adds('text')}"
        )
    if view >= cache.num_views:
        raise CacheMismatchError(
            f"{cache.storage} has {cache.num_views} views, expected one from 0 to "
            f"{cache.num_views - 1}, not {view}"
        )
    return CachedWords(cache, view=view, images=images, text_spec=spec)
