"""`clipocr data show`: a contact sheet of words with their labels."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ...shared.data.images import ImageProblemError, decode_image
from ...shared.data.word_lmdb import WordLmdb
from ...shared.errors import DataError
from ...shared.hashing import mix
from ...shared.progress import progress_bar
from ..inspect.paper import (
    BAD_PAPER,
    EDGE,
    FAINT_INK,
    INK,
    MARGIN_PX,
    PAPER,
    Font,
    fitted,
    sheet_font,
)
from .options import ShowWordsOptions

_FEWEST_COLUMNS, _MOST_COLUMNS = 3, 6
_BOX_PX = (176, 64)
"""(width, height) that each picture is fitted into."""
_MOST_ENLARGED = 3
_LABEL_PX, _ABOUT_PX, _HEADER_PX = 24, 18, 78


@dataclass(frozen=True, kw_only=True)
class ShownWords:
    """What is on the sheet."""

    num_shown: int
    num_found: int
    """Words that were asked for, of which the sheet has the first."""
    size_px: tuple[int, int]
    """(width, height)."""


@dataclass(frozen=True, kw_only=True)
class _Word:
    idx: int
    """In the LMDB, from 1."""
    label: str
    picture: Image.Image | str
    """Or why there is none."""

    @property
    def num_pixels(self) -> int:
        """None of what is no picture."""
        return 0 if isinstance(self.picture, str) else math.prod(self.picture.size)


def show_words(path: Path, options: ShowWordsOptions) -> ShownWords:
    """Draw words of an LMDB into a PNG.

    Raises:
        DataError: none is as asked for, the LMDB is damaged, or the font is none.
    """
    lmdb = WordLmdb(path)
    fonts = sheet_font(16, options.font), sheet_font(12)
    found = _find(lmdb, options)
    words = _first(lmdb, found, options)
    about = f"{len(words):,} of {len(found):,} words{_which(options)}, {_in_order(options)}"
    sheet = _draw(path.resolve().name, about, words, *fonts)
    sheet.save(options.out, "PNG")
    return ShownWords(num_shown=len(words), num_found=len(found), size_px=sheet.size)


def _find(lmdb: WordLmdb, options: ShowWordsOptions) -> Sequence[int]:
    num_samples = len(lmdb)
    if options.keys:
        beyond = [key for key in options.keys if key > num_samples]
        if beyond:
            raise DataError(f"{lmdb.path} has no sample {beyond[0]}, only 1 to {num_samples:,}")
        return options.keys
    if options.label is None:
        found: Sequence[int] = range(1, num_samples + 1)
    else:
        found = [idx for idx, label in lmdb.labels() if options.matches(label or "")]
    if not found:
        raise DataError(f"{lmdb.path} has no word{_which(options)}")
    return found


def _which(options: ShowWordsOptions) -> str:
    if options.label is None:
        return ""
    how = "labelled {!r}" if options.exact else "with {!r} in the label"
    return " " + how.format(options.label)


def _in_order(options: ShowWordsOptions) -> str:
    if options.keys:
        return "by their numbers"
    in_words = {"random": f"at random, seed {options.seed}", "first": "in their order"}
    return in_words.get(options.order, "smallest first")


def _first(lmdb: WordLmdb, found: Sequence[int], options: ShowWordsOptions) -> list[_Word]:
    if options.order == "smallest" and not options.keys:
        words = progress_bar(_read(lmdb, found), total=len(found), unit="image", desc="show")
        return heapq.nsmallest(options.words, words, key=lambda word: word.num_pixels)
    if options.order == "random" and not options.keys:
        order = np.argsort(mix(options.seed, np.asarray(found)), kind="stable")
        found = [found[i] for i in order[: options.words].tolist()]
    return list(_read(lmdb, found[: options.words]))


def _read(lmdb: WordLmdb, indices: Sequence[int]) -> Iterator[_Word]:
    for idx in indices:
        encoded, label = lmdb.image(idx), lmdb.label(idx)
        try:
            picture: Image.Image | str = "missing" if encoded is None else decode_image(encoded)
        except ImageProblemError as e:
            picture = str(e)
        yield _Word(idx=idx, label=label if label is not None else "(no label)", picture=picture)


def _draw(
    title: str, about: str, words: Sequence[_Word], label_font: Font, about_font: Font
) -> Image.Image:
    """Draw each word's picture, and below it its label, its number and its size."""
    box_width, box_height = _BOX_PX
    step_x = box_width + MARGIN_PX
    step_y = box_height + _LABEL_PX + _ABOUT_PX + MARGIN_PX
    num_columns = min(_MOST_COLUMNS, max(_FEWEST_COLUMNS, len(words)))
    num_rows = math.ceil(len(words) / num_columns)
    size_px = (MARGIN_PX + num_columns * step_x, _HEADER_PX + num_rows * step_y)
    sheet = Image.new("RGB", size_px, PAPER)
    pen = ImageDraw.Draw(sheet)
    for line, ink, y in ((title, INK, MARGIN_PX), (about, FAINT_INK, MARGIN_PX + 22)):
        shown = fitted(line, label_font, sheet.width - 2 * MARGIN_PX)
        pen.text((MARGIN_PX, y), shown, ink, label_font)
    for place, word in enumerate(words):
        row, column = divmod(place, num_columns)
        x, y = MARGIN_PX + column * step_x, _HEADER_PX + row * step_y
        size = f"{word.idx:,}"
        if isinstance(word.picture, str):
            pen.rectangle((x, y, x + box_width - 1, y + box_height - 1), BAD_PAPER)
            pen.text((x + 8, y + box_height // 2 - 8), word.picture, INK, about_font)
        else:
            picture = _fit(word.picture)
            # At the bottom, so that the label is right below it.
            top = y + box_height - picture.height
            sheet.paste(picture, (x, top))
            pen.rectangle((x - 1, top - 1, x + picture.width, y + box_height), outline=EDGE)
            size += f"  ·  {word.picture.width}x{word.picture.height}"
        y += box_height + 5
        pen.text((x, y), fitted(word.label, label_font, box_width), INK, label_font)
        pen.text((x, y + _LABEL_PX), size, FAINT_INK, about_font)
    return sheet


def _fit(picture: Image.Image) -> Image.Image:
    scale = min(_MOST_ENLARGED, *(box / px for box, px in zip(_BOX_PX, picture.size, strict=True)))
    width, height = (max(1, round(scale * px)) for px in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)
