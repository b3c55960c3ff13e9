"""`clipocr cache show`: a contact sheet of what student and teacher see.

Rows by views: each view's pixels as stored, and below them the first three principal components of
an array's patch tokens as red, green and blue, one square per patch. Equal colours are patches that
the teacher finds alike, in all rows and views of the sheet.

Shapes: N cells, P patch tokens (without the class token), D teacher width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ...shared.cache.codecs.codecs import Pixels
from ...shared.cache.names import PIXELS
from ...shared.cache.reader import FeatureCache
from ...shared.cache.spec import TeacherSpec
from ...shared.cache.words import Row, WordReader
from ...shared.data.word_lmdb import image_key
from ...shared.geometry import ViewSize
from .options import ShowOptions
from .paper import ABSENT_PAPER, BAD_PAPER, INK, MARGIN_PX, PAPER, sheet_font

Floats = npt.NDArray[np.float32]
_Place = tuple[int, int]
"""Which row of the sheet, and which view."""

_MOST_VIEWS = 5
"""As many as a laptop shows at twice their size."""
_LOW_PERCENT, _HIGH_PERCENT = 2.0, 98.0
"""What becomes 0 and 255; single odd tokens must not take all the contrast."""

_ENLARGED_PX = 64
"""Lower views are enlarged up to this height, by whole numbers."""
_LABEL_PX, _HEADER_PX = 232, 100


@dataclass(frozen=True, kw_only=True)
class ShowSummary:
    """What is on the sheet."""

    num_rows: int
    num_views: int
    array: str
    size_px: tuple[int, int]
    """(width, height)."""
    teacher: TeacherSpec


def show_cache(place: str | Path, options: ShowOptions) -> ShowSummary:
    """Draw rows of a cache into a PNG; units that are not built yet are left out."""
    cache = FeatureCache.open(place)
    cache.require_images((), pixels=True)
    spec, teacher = cache.spec, cache.spec.teacher
    num_views = min(cache.num_views, _MOST_VIEWS)
    array = options.array or spec.image_names[-1]
    reader = WordReader(cache, (array,))
    rows = _choose_rows(reader, options)
    problems: dict[_Place, str] = {}
    views: dict[_Place, Pixels] = {}
    tokens = []
    for at in product(range(len(rows)), range(num_views)):
        row_idx, view_idx = rows[at[0]].idx, at[1]
        if problem := reader.problem(view_idx, row_idx):
            problems[at] = problem
        else:
            arrays = reader.arrays(view_idx, row_idx)
            views[at] = arrays[PIXELS]
            tokens.append(arrays[array][1:])
    colors, explained = color_tokens(np.stack(tokens)) if tokens else ((), 0.0)
    cells = {at: (view, of_view) for (at, view), of_view in zip(views.items(), colors, strict=True)}
    random = ", RANDOM weights: these colours say nothing of CLIP" if teacher.is_random else ""
    header = (
        f"{str(place).rstrip('/').rpartition('/')[2]}, {teacher.name}{random}\n"
        f"{len(rows)} of {spec.num_rows:,} rows, {num_views} of {cache.num_views} views "
        f"({spec.view})\n"
        f"colours: first three principal components of the patch tokens of {array}, "
        f"{100 * explained:.0f} % of their variance"
    )
    sheet = _draw_sheet(header, rows, num_views, cells, problems, spec.view.view_px)
    sheet.save(options.out, "PNG")
    return ShowSummary(
        num_rows=len(rows),
        num_views=num_views,
        array=array,
        size_px=sheet.size,
        teacher=teacher,
    )


def _choose_rows(reader: WordReader, options: ShowOptions) -> list[Row]:
    """Return random rows, or of each label and key that is given an equal share."""
    choice = options.choice
    if not (choice.labels or choice.keys):
        return list(islice(reader.random_rows(choice.seed), options.rows))
    chosen = reader.rows_of(choice.labels, choice.keys, choice.seed)
    share = max(options.rows // len(chosen), 1)
    return [row for rows in chosen.values() for row in rows[:share]]


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


def patch_grid(num_patches: int, view_px: ViewSize) -> tuple[int, int]:
    """Return (rows, columns) of the patches: in the view's proportions, or a single row."""
    height = math.isqrt(num_patches * view_px.height_px // view_px.width_px)
    width = height * view_px.width_px // view_px.height_px
    return (height, width) if height * width == num_patches else (1, num_patches)


def _draw_sheet(
    header: str,
    rows: Sequence[Row],
    num_views: int,
    cells: Mapping[_Place, tuple[Pixels, Pixels]],
    problems: Mapping[_Place, str],
    view_px: ViewSize,
) -> Image.Image:
    """Draw each row's label, and beside it its views above their colours, or why there are none."""
    scale = max(1, _ENLARGED_PX // view_px.height_px)
    cell_height, cell_width = scale * view_px.height_px, scale * view_px.width_px
    step_x, step_y = cell_width + MARGIN_PX, 2 * cell_height + MARGIN_PX
    font = sheet_font(14)
    header_px = max(math.ceil(font.getlength(line)) for line in header.splitlines())
    width = 2 * MARGIN_PX + max(_LABEL_PX + num_views * step_x, header_px)
    sheet = Image.new("RGB", (width, _HEADER_PX + len(rows) * step_y), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN_PX, MARGIN_PX), header, INK, font)

    def corner(at: _Place) -> tuple[int, int]:
        return MARGIN_PX + _LABEL_PX + at[1] * step_x, _HEADER_PX + at[0] * step_y

    for row_number, row in enumerate(rows):
        # The end of a source's name tells more than its beginning.
        source = row.source if len(row.source) <= 28 else "…" + row.source[-27:]
        about = f"{row.label}\n{source}\n{image_key(row.lmdb_index).decode()}"
        pen.text((MARGIN_PX, _HEADER_PX + row_number * step_y), about, INK, font)
    for at, (view, colors) in cells.items():
        x, y = corner(at)
        patches = colors.reshape(*patch_grid(len(colors), view_px), 3)
        for top, pixels in ((y, view), (y + cell_height, patches)):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            sheet.paste(
                picture.resize((cell_width, cell_height), Image.Resampling.NEAREST), (x, top)
            )
    for at, problem in problems.items():
        x, y = corner(at)
        paper = BAD_PAPER if problem.startswith("bad") else ABSENT_PAPER
        pen.rectangle((x, y, x + cell_width - 1, y + 2 * cell_height - 1), paper)
        pen.text((x + 12, y + cell_height - 8), problem, INK, font)
    return sheet
