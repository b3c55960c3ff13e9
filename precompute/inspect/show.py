"""`clipocr cache show`: a contact sheet of what student and teacher see.

Rows by views: each view's pixels as stored, and below them the first three principal components of
an array's patch tokens as red, green and blue, one square per patch. Equal colours are patches that
the teacher finds alike, in all rows and views of the sheet.

Shapes: N cells, P patch tokens (without the class token), D teacher width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ...shared.cache.codecs.codecs import Pixels
from ...shared.cache.names import PIXELS
from ...shared.cache.reader import FeatureCache
from ...shared.cache.spec import TeacherSpec
from ...shared.cache.words import Row, WordReader
from ...shared.data.word_lmdb import image_key
from ...shared.errors import CacheMismatchError
from ...shared.geometry import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from ...shared.terminal import counted
from .options import ShowOptions

Floats = npt.NDArray[np.float32]

_MOST_VIEWS = 5
"""Shown unless more are asked for: as many as a laptop shows at twice their size."""
_LOW_PERCENT, _HIGH_PERCENT = 2.0, 98.0
"""What becomes 0 and 255; single odd tokens must not take all the contrast."""

_MARGIN_PX, _GAP_PX, _LABEL_PX, _HEADER_PX, _HEADING_PX = 32, 8, 204, 140, 30
_MOST_WIDTH_PX = 1680
_PAPER, _INK, _SOFT_INK, _WARNING = "#ffffff", "#1c2430", "#75808f", "#b3261e"
_LINE, _BAD_PAPER, _ABSENT_PAPER = "#d5dae1", "#fbeae9", "#f1f3f6"


@dataclass(frozen=True, kw_only=True)
class ShowSummary:
    """What is on the sheet."""

    num_rows: int
    num_views: int
    array: str
    size_px: tuple[int, int]
    """(width, height)."""
    teacher: TeacherSpec


@dataclass(kw_only=True)
class _Cell:
    """One row in one view."""

    problem: str
    """Why there is nothing else."""
    view: Pixels | None = None
    """Shape: (32, 128, 3)."""
    colors: Pixels | None = None
    """Shape: (P, 3)."""


def show_cache(place: str | Path, options: ShowOptions) -> ShowSummary:
    """Draw random rows of a cache into a PNG; units that are not built yet are left out."""
    cache = FeatureCache.open(place)
    spec, teacher = cache.spec, cache.spec.teacher
    num_views = options.view_count or min(cache.num_views, _MOST_VIEWS)
    if num_views > cache.num_views > 0:
        raise CacheMismatchError(
            f"{cache.storage} has {cache.num_views} views, not {num_views}; "
            f"pass 1 to {cache.num_views}"
        )
    array = options.array or spec.image_names[-1]
    reader = WordReader(cache, (array,))
    rows, tokens = [], []
    for row in islice(reader.random_rows(options.seed), options.rows):
        cells = [_Cell(problem=reader.problem(view, row.idx)) for view in range(num_views)]
        for view_idx, cell in enumerate(cells):
            if not cell.problem:
                arrays = reader.arrays(view_idx, row.idx)
                cell.view = arrays[PIXELS]
                tokens.append(arrays[array][1:])
        rows.append((row, cells))
    explained = 0.0
    if tokens:
        colors, explained = color_tokens(np.stack(tokens))
        shown = (cell for _, cells in rows for cell in cells if not cell.problem)
        for cell, of_cell in zip(shown, colors, strict=True):
            cell.colors = of_cell
    image = _draw_sheet(
        rows,
        title=str(place).rstrip("/").rpartition("/")[2],
        teacher=teacher.name,
        warning="RANDOM weights: these colours say nothing of CLIP" if teacher.is_random else "",
        lines=(
            f"{len(rows)} of {spec.num_rows:,} rows, {num_views} of "
            f"{counted(cache.num_views, 'view')} ({spec.view}, "
            f"{spec.view.height_px}x{spec.view.width_px})",
            f"colours: first three principal components of the patch tokens of {array}, "
            f"{100 * explained:.0f} % of their variance",
        ),
        array=array,
    )
    image.save(options.out, "PNG")
    return ShowSummary(
        num_rows=len(rows),
        num_views=num_views,
        array=array,
        size_px=image.size,
        teacher=teacher,
    )


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
    varies = ((high - low) ** 2 * len(centred) > 1e-12 * total) & (high > low)
    scaled = np.where(varies, (components - low) / np.where(varies, high - low, 1.0), 0.5)
    colors = (255 * scaled.clip(0, 1)).round().astype(np.uint8)
    explained = float(variances[::-1][:3].sum()) / total if total > 0 else 0.0
    return colors.reshape(*tokens.shape[:2], 3), explained


def patch_grid(num_patches: int) -> tuple[int, int]:
    """Return (rows, columns) of the patches: as the view, 1 to 4, or a single row."""
    height = math.isqrt(num_patches * IMAGE_HEIGHT_PX // IMAGE_WIDTH_PX)
    width = height * IMAGE_WIDTH_PX // IMAGE_HEIGHT_PX
    return (height, width) if height * width == num_patches else (1, num_patches)


# -- drawing ---------------------------------------------------------------------------------------


def _draw_sheet(
    rows: Sequence[tuple[Row, list[_Cell]]],
    *,
    title: str,
    teacher: str,
    warning: str,
    lines: Sequence[str],
    array: str,
) -> Image.Image:
    """Draw a label and the views of each row, in as many columns of rows as there is room for."""
    num_views = len(rows[0][1])
    widths = [_LABEL_PX + num_views * (scale * IMAGE_WIDTH_PX + 3 * _GAP_PX) for scale in (1, 2)]
    scale = 2 if widths[1] + 2 * _MARGIN_PX <= _MOST_WIDTH_PX else 1
    column_px = widths[scale - 1] - 3 * _GAP_PX
    num_columns = max(1, min(len(rows), _MOST_WIDTH_PX // (column_px + 2 * _MARGIN_PX)))
    rows_per_column = -(-len(rows) // num_columns)
    cell_px = (scale * IMAGE_WIDTH_PX, 2 * scale * IMAGE_HEIGHT_PX + _GAP_PX // 2)
    row_px = cell_px[1] + 2 * _GAP_PX
    width = max(num_columns * (column_px + 2 * _MARGIN_PX), 900)
    height = _HEADER_PX + _HEADING_PX + rows_per_column * row_px + _MARGIN_PX // 2
    image = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(image)
    _draw_header(pen, title, teacher, warning, lines)
    for row_idx, (row, cells) in enumerate(rows):
        column_idx, in_column = divmod(row_idx, rows_per_column)
        left = _MARGIN_PX + column_idx * (column_px + 2 * _MARGIN_PX)
        pairs_x = [
            left + _LABEL_PX + view_idx * (cell_px[0] + 3 * _GAP_PX)
            for view_idx in range(num_views)
        ]
        if in_column == 0:
            _text(pen, (left, _HEADER_PX), "label", 14, bold=True)
            for view_idx, x in enumerate(pairs_x):
                _text(pen, (x, _HEADER_PX), f"view {view_idx}, {array} below", 14, bold=True)
            line_y = _HEADER_PX + 24
            pen.line((left, line_y, left + column_px, line_y), _LINE)
        y = _HEADER_PX + _HEADING_PX + in_column * row_px + _GAP_PX
        _draw_word(pen, (left, y + cell_px[1] // 2), row)
        for x, cell in zip(pairs_x, cells, strict=True):
            _draw_cell(image, pen, (x, y), cell_px, cell)
    return image


def _draw_header(
    pen: ImageDraw.ImageDraw, title: str, teacher: str, warning: str, lines: Sequence[str]
) -> None:
    x, y = _MARGIN_PX, _MARGIN_PX - 8
    for text, size_px, color, bold in (
        (title, 24, _INK, True),
        (teacher, 15, _SOFT_INK, False),
        (warning, 15, _WARNING, True),
    ):
        _text(pen, (x, y + 24 - size_px), text, size_px, color, bold=bold)
        x += math.ceil(_font(size_px, bold).getlength(text)) + 20
    for line_idx, line in enumerate(lines):
        _text(pen, (_MARGIN_PX, y + 42 + 21 * line_idx), line, 14, _SOFT_INK)


def _draw_word(pen: ImageDraw.ImageDraw, left_middle: tuple[int, int], row: Row) -> None:
    x, middle = left_middle
    size_px = _fitting(row.label, 17, bold=True)
    _text(pen, (x, middle - 5 - size_px), row.label, size_px, bold=True)
    # The end of a source's name tells more than its beginning.
    source = row.source if len(row.source) <= 28 else "…" + row.source[-27:]
    _text(pen, (x, middle + 1), source, _fitting(source, 11), _SOFT_INK)
    _text(pen, (x, middle + 15), image_key(row.lmdb_index).decode(), 11, _SOFT_INK)


def _draw_cell(
    image: Image.Image,
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    size_px: tuple[int, int],
    cell: _Cell,
) -> None:
    """Draw a view and its colours below, or why there are none."""
    (x, y), (width, height) = corner, size_px
    if cell.view is None or cell.colors is None:
        is_bad = cell.problem.startswith("bad")
        box = (x, y, x + width - 1, y + height - 1)
        pen.rectangle(box, _BAD_PAPER if is_bad else _ABSENT_PAPER)
        color = _WARNING if is_bad else _SOFT_INK
        _text(pen, (x + 12, y + height // 2 - 10), cell.problem, 14, color)
        return
    half = (height - _GAP_PX // 2) // 2
    colors = cell.colors.reshape(*patch_grid(len(cell.colors)), 3)
    for top, pixels in ((y, cell.view), (y + height - half, colors)):
        pen.rectangle((x - 1, top - 1, x + width, top + half), outline=_LINE)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        image.paste(picture.resize((width, half), Image.Resampling.NEAREST), (x, top))


def _text(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size_px: int,
    color: str = _INK,
    *,
    bold: bool = False,
) -> None:
    pen.text(corner, text, color, _font(size_px, bold))


def _fitting(text: str, size_px: int, *, bold: bool = False) -> int:
    """Return the size at which a text fits beside the views, `size_px` at most."""
    width = _font(size_px, bold).getlength(text)
    return max(7, min(size_px, int(size_px * (_LABEL_PX - 16) / max(width, 1))))


@lru_cache
def _font(size_px: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size_px)
