"""`clipocr cache show`: a contact sheet of what student and teacher see.

Rows by views: each view's pixels as stored, and beside them the first three principal components
of a tap's patch tokens as red, green and blue, one square per patch. Equal colours are patches that
the teacher finds alike, in all rows and views of the sheet.

Shapes: N cells, P patch tokens (without the class token), D teacher width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from ...shared.cache.codecs.codecs import Pixels, unfilter_pixels
from ...shared.cache.names import PIXELS, block_name
from ...shared.cache.reader import FeatureCache
from ...shared.data.word_lmdb import image_key
from ...shared.errors import CacheMismatchError, CacheMissingError, UsageError
from ...shared.geometry import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX

Floats = npt.NDArray[np.float32]

_MOST_VIEWS = 5
"""Shown unless more are asked for: as many as a laptop shows at twice their size."""
_LOW_PERCENT, _HIGH_PERCENT = 2.0, 98.0
"""What becomes 0 and 255; single odd tokens must not take all the contrast."""

_MARGIN_PX, _GAP_PX, _LABEL_PX = 32, 8, 204
_MOST_WIDTH_PX = 1680
_PAPER, _INK, _SOFT_INK, _WARNING = "#ffffff", "#1c2430", "#75808f", "#b3261e"
_LINE, _BAD_PAPER, _ABSENT_PAPER = "#d5dae1", "#fbeae9", "#f1f3f6"


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """What `clipocr cache show` was asked for."""

    cache: str | Path
    out: Path
    num_rows: int = 12
    num_views: int | None = None
    """None: all, or the first few."""
    tap: int | None = None
    """Image block; None: the last there is."""
    seed: int = 0
    """Which rows are drawn."""


@dataclass(frozen=True, kw_only=True)
class ShowSummary:
    """What is on the sheet."""

    num_rows: int
    num_views: int
    tap: int
    size_px: tuple[int, int]
    """(width, height)."""
    teacher_name: str
    teacher_is_random: bool


@dataclass(kw_only=True)
class _Cell:
    """One row in one view."""

    view: Pixels | None = None
    """Shape: (32, 128, 3)."""
    tokens: Floats | None = None
    """Shape: (P, D)."""
    colors: Pixels | None = None
    """Shape: (P, 3)."""
    problem: str = ""
    """Why there is no view."""


@dataclass(kw_only=True)
class _Row:
    label: str
    source: str
    lmdb_key: str
    cells: list[_Cell] = field(default_factory=list)


def show_cache(config: ShowConfig) -> ShowSummary:
    """Draw random rows of a cache into a PNG; units that are not built yet are left out.

    Raises:
        CacheError: there is no cache, nothing is built, or it lacks what was asked for.
    """
    cache = FeatureCache.open(config.cache)
    spec, teacher = cache.spec, cache.spec.teacher
    num_views = _choose_views(cache, config.num_views)
    tap = spec.image_taps[-1] if config.tap is None else config.tap
    cache.require_images((block_name(tap),))
    rows = _read_rows(cache, config, num_views, tap)
    explained = _color(rows)
    num_patches = spec.image(block_name(tap)).num_tokens - 1
    header = [
        f"{len(rows)} of {spec.num_rows:,} rows, {num_views} of {cache.num_views} "
        f"{'view' if cache.num_views == 1 else 'views'} ({spec.view.augment}, "
        f"{spec.view.height_px}x{spec.view.width_px})",
        f"colours: first three principal components of block {tap}'s {num_patches} patch tokens, "
        f"{100 * explained:.0f} % of their variance",
    ]
    sheet = _Sheet(num_views=num_views, num_rows=len(rows), tap=tap)
    title = str(config.cache).rstrip("/").rpartition("/")[2]
    sheet.draw_header(title, teacher.name, header, is_random=teacher.is_random)
    for row_idx, row in enumerate(rows):
        sheet.draw_row(row_idx, row)
    sheet.image.save(config.out, "PNG")
    return ShowSummary(
        num_rows=len(rows),
        num_views=num_views,
        tap=tap,
        size_px=sheet.image.size,
        teacher_name=teacher.name,
        teacher_is_random=teacher.is_random,
    )


def _choose_views(cache: FeatureCache, wanted: int | None) -> int:
    held = cache.num_views
    if not held:
        raise CacheMissingError(
            f"{cache.storage} has no finished unit yet; run its cache build command again"
        )
    if wanted is not None and not 1 <= wanted <= held:
        raise CacheMismatchError(
            f"{cache.storage} has {held} views, not {wanted}; pass 1 to {held}"
        )
    return wanted or min(held, _MOST_VIEWS)


def _read_rows(cache: FeatureCache, config: ShowConfig, num_views: int, tap: int) -> list[_Row]:
    if config.num_rows < 1:
        raise UsageError(f"rows is {config.num_rows}, expected 1 or more")
    units = cache.units()
    bounds = [cache.spec.unit_range(unit_idx) for unit_idx in units]
    built = np.concatenate([np.arange(start, stop) for start, stop in bounds])
    rng = np.random.default_rng(config.seed)
    drawn = rng.choice(built, min(config.num_rows, len(built)), replace=False)
    labels, codec = cache.labels(), cache.codec(block_name(tap))
    rows = []
    for row_idx in drawn.tolist():
        unit_idx = row_idx // cache.spec.unit_rows
        keys = cache.rows(unit_idx)
        at = row_idx - cache.spec.unit_range(unit_idx)[0]
        source = cache.spec.sources[keys["source"][at]].name
        row = _Row(
            label=labels[keys["label"][at]],
            source=source,
            lmdb_key=image_key(int(keys["lmdb_index"][at])).decode(),
        )
        for view_idx in range(num_views):
            if unit_idx not in cache.units(view_idx):
                row.cells.append(_Cell(problem="not built yet"))
                continue
            reason = cache.unit(view_idx, unit_idx).bad_rows.get(row_idx)
            if reason is not None:
                row.cells.append(_Cell(problem=f"bad: {reason}"))
                continue
            pixels, stored = (
                torch.from_numpy(
                    cache.image_reader(view_idx, array).rows(row_idx, row_idx + 1).copy()
                )
                for array in (PIXELS, block_name(tap))
            )
            tokens = codec.decode(stored).float()[0, 1:].numpy()
            row.cells.append(_Cell(view=unfilter_pixels(pixels)[0].numpy(), tokens=tokens))
        rows.append(row)
    return rows


def _color(rows: Sequence[_Row]) -> float:
    """Give every cell with tokens its colours; return the share of variance they show."""
    cells = [cell for row in rows for cell in row.cells if cell.tokens is not None]
    if not cells:
        return 0.0
    colors, explained = color_tokens(np.stack([c.tokens for c in cells if c.tokens is not None]))
    for cell, of_cell in zip(cells, colors, strict=True):
        cell.colors = of_cell
    return explained


def color_tokens(tokens: Floats) -> tuple[Pixels, float]:
    """Return the first three principal components over all tokens as colours.

    One basis and one scale for all, each component stretched between its percentiles; its sign is
    such that the strongest channel counts upwards, so equal features give equal pictures.

    Shape: (N, P, D) -> (N, P, 3) uint8, and the share of the variance that is in them.
    """
    centred = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    centred -= centred.mean(axis=0)
    variances, basis = np.linalg.eigh(centred.T @ centred)
    basis = basis[:, ::-1][:, :3]
    strongest = np.abs(basis).argmax(axis=0)
    basis = basis * np.sign(basis[strongest, np.arange(basis.shape[1])])
    components = np.zeros((len(centred), 3))
    components[:, : basis.shape[1]] = centred @ basis
    low, high = np.percentile(components, [_LOW_PERCENT, _HIGH_PERCENT], axis=0)
    # What does not vary, beyond rounding, is mid-grey.
    total = max(float(variances.sum()), 0.0)
    varies = (high - low) ** 2 * len(centred) > 1e-12 * total
    span = np.where(varies & (high > low), high - low, 1.0)
    scaled = np.where(varies & (high > low), (components - low) / span, 0.5)
    colors = (255 * scaled.clip(0, 1)).round().astype(np.uint8)
    explained = float(variances[::-1][:3].sum()) / total if total > 0 else 0.0
    return colors.reshape(*tokens.shape[:2], 3), explained


def patch_grid(num_patches: int) -> tuple[int, int]:
    """Return (rows, columns) of the patches: as the view, 1 to 4, or a single row."""
    height = math.isqrt(num_patches * IMAGE_HEIGHT_PX // IMAGE_WIDTH_PX)
    width = height * IMAGE_WIDTH_PX // IMAGE_HEIGHT_PX
    return (height, width) if height * width == num_patches else (1, num_patches)


class _Sheet:
    """Where things are on the sheet, and the drawing of them.

    A view and its colours stand side by side; from three views on, the colours stand below, or the
    sheet would be too wide. A sheet of one view has two columns of rows.
    """

    def __init__(self, *, num_views: int, num_rows: int, tap: int) -> None:
        self._tap, self._num_views = tap, num_views
        self._is_stacked = num_views > 2
        across = num_views * (1 if self._is_stacked else 2)
        room = _MOST_WIDTH_PX - 2 * _MARGIN_PX - _LABEL_PX - num_views * 3 * _GAP_PX
        self._scale = max(1, min(2, room // (across * IMAGE_WIDTH_PX)))
        self._cell_px = (self._scale * IMAGE_WIDTH_PX, self._scale * IMAGE_HEIGHT_PX)
        width, height = self._cell_px
        self._pair_width = width if self._is_stacked else 2 * width + _GAP_PX
        self._pair_height = 2 * height + _GAP_PX // 2 if self._is_stacked else height
        self._block_width = _LABEL_PX + num_views * (self._pair_width + 3 * _GAP_PX) - 3 * _GAP_PX
        self._row_height = max(self._pair_height, 40) + 2 * _GAP_PX
        num_blocks = 2 if num_views == 1 and num_rows > 1 else 1
        self._rows_per_block = -(-num_rows // num_blocks)
        self._top = _MARGIN_PX + 108
        block_gap = 2 * _MARGIN_PX
        self._block_x = [
            _MARGIN_PX + block_idx * (self._block_width + block_gap)
            for block_idx in range(num_blocks)
        ]
        size = (
            max(self._block_x[-1] + self._block_width + _MARGIN_PX, 900),
            self._top + 30 + self._rows_per_block * self._row_height + _MARGIN_PX // 2,
        )
        self.image = Image.new("RGB", size, _PAPER)
        self._pen = ImageDraw.Draw(self.image)

    def draw_header(
        self, title: str, teacher: str, lines: Sequence[str], *, is_random: bool
    ) -> None:
        """Say what cache this is, what the colours are, and what each column is."""
        x, y = _MARGIN_PX, _MARGIN_PX - 8
        self._text((x, y), title, 24, bold=True)
        right = x + self._width_of(title, 24, bold=True) + 20
        self._text((right, y + 8), teacher, 15, _SOFT_INK)
        if is_random:
            right += self._width_of(teacher, 15) + 20
            note = "RANDOM weights: these colours say nothing of CLIP"
            self._text((right, y + 8), note, 15, _WARNING, bold=True)
        for line_idx, line in enumerate(lines):
            self._text((x, y + 42 + 21 * line_idx), line, 14, _SOFT_INK)
        for block_x in self._block_x:
            line_y = self._top + 24
            self._pen.line((block_x, line_y, block_x + self._block_width, line_y), _LINE)
            self._text((block_x, self._top), "label", 14, bold=True)
            for view_idx in range(self._num_views):
                at = self._pair_x(block_x, view_idx)
                if self._is_stacked:
                    named = f"view {view_idx}, block {self._tap} below"
                    self._text((at, self._top), named, 14, bold=True)
                else:
                    self._text((at, self._top), f"view {view_idx}", 14, bold=True)
                    beside = at + self._cell_px[0] + _GAP_PX
                    self._text((beside, self._top), f"block {self._tap}", 14, bold=True)

    def draw_row(self, row_idx: int, row: _Row) -> None:
        """Draw a row's label and its cells."""
        block_idx, in_block = divmod(row_idx, self._rows_per_block)
        block_x = self._block_x[block_idx]
        y = self._top + 30 + in_block * self._row_height + _GAP_PX
        middle = y + self._pair_height // 2
        room = _LABEL_PX - 16
        fits = (s for s in (17, 15, 13) if self._width_of(row.label, s, bold=True) <= room)
        size_px = next(fits, 11)
        label = self._shortened(row.label, room, size_px, bold=True)
        self._text((block_x, middle - 5 - size_px), label, size_px, bold=True)
        # The end of a source's name tells more than its beginning.
        source = self._shortened(row.source[::-1], room, 11)[::-1]
        self._text((block_x, middle + 1), source, 11, _SOFT_INK)
        self._text((block_x, middle + 15), row.lmdb_key, 11, _SOFT_INK)
        for view_idx, cell in enumerate(row.cells):
            self._draw_cell((self._pair_x(block_x, view_idx), y), cell)

    def _draw_cell(self, corner: tuple[int, int], cell: _Cell) -> None:
        (x, y), (width, height) = corner, self._cell_px
        if cell.view is None or cell.colors is None:
            is_bad = cell.problem.startswith("bad")
            box = (x, y, x + self._pair_width - 1, y + self._pair_height - 1)
            self._pen.rectangle(box, _BAD_PAPER if is_bad else _ABSENT_PAPER)
            middle = y + self._pair_height // 2 - 10
            color = _WARNING if is_bad else _SOFT_INK
            self._text((x + 12, middle), self._shortened(cell.problem, width, 14), 14, color)
            return
        below = (x, y + height + _GAP_PX // 2)
        colors = cell.colors.reshape(*patch_grid(len(cell.colors)), 3)
        self._paste((x, y), cell.view)
        self._paste(below if self._is_stacked else (x + width + _GAP_PX, y), colors)

    def _paste(self, corner: tuple[int, int], pixels: Pixels) -> None:
        (x, y), (width, height) = corner, self._cell_px
        self._pen.rectangle((x - 1, y - 1, x + width, y + height), outline=_LINE)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        self.image.paste(picture.resize(self._cell_px, Image.Resampling.NEAREST), corner)

    def _pair_x(self, block_x: int, view_idx: int) -> int:
        return block_x + _LABEL_PX + view_idx * (self._pair_width + 3 * _GAP_PX)

    def _text(
        self,
        corner: tuple[int, int],
        text: str,
        size_px: int,
        color: str = _INK,
        *,
        bold: bool = False,
    ) -> None:
        self._pen.text(corner, text, color, _font(size_px, bold))

    def _width_of(self, text: str, size_px: int, *, bold: bool = False) -> int:
        return math.ceil(_font(size_px, bold).getlength(text))

    def _shortened(self, text: str, room_px: int, size_px: int, *, bold: bool = False) -> str:
        if self._width_of(text, size_px, bold=bold) <= room_px:
            return text
        while text and self._width_of(text + "…", size_px, bold=bold) > room_px:
            text = text[:-1]
        return text + "…"


@lru_cache
def _font(size_px: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size_px)
