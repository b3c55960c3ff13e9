"""The picture of `clipocr cache align`: a heat map for each kind of tokens, with the crops.

Shapes: N words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, font_manager
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...shared.cache.codecs.codecs import Pixels
from ...shared.cache.spec import TeacherSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float32]

MOST_DRAWN = 16
"""Words in one figure; the numbers in the cells are legible up to here."""
_TITLES = {"char": "label as characters", "word": "label as a word"}
_COLORS = colormaps["cividis"]  # Perceptually uniform, and the same to the colour-blind.
_TOFU = "\N{WHITE SQUARE}"
_WARNING, _SOFT_INK = "#b3261e", "0.35"
_CELL_INCHES, _LEAST_PANEL_INCHES, _HEADER_INCHES, _CROP_CELLS = 0.42, 3.2, 0.95, 3.7


def draw_retrieval(
    path: Path,
    *,
    labels: Sequence[str],
    views: Sequence[Pixels],
    matrices: Mapping[str, Floats],
    quantity: str,
    captions: Mapping[str, str],
    teacher: TeacherSpec,
) -> str:
    """Draw the first words' pictures against their labels, as a PNG.

    Args:
        path: Of the PNG.
        labels: N labels.
        views: N pictures. Shape: (32, 128, 3) each.
        matrices: Kind of tokens -> its numbers, rows pictures. Shape: (N, N) each.
        quantity: What the numbers are.
        captions: Kind of tokens -> what is said below its heat map.
        teacher: Whose embeddings they are.

    Returns:
        The characters for which no font was found; a square stands for each.
    """
    total, labels, views = len(labels), labels[:MOST_DRAWN], views[:MOST_DRAWN]
    num_words = len(labels)
    shown = {tokens: matrix[:num_words, :num_words] for tokens, matrix in matrices.items()}
    families, undrawable = find_fonts("".join(labels))
    labels = ["".join(_TOFU if c in undrawable else c for c in label) for label in labels]
    scale = Normalize(min(m.min() for m in shown.values()), max(m.max() for m in shown.values()))

    cell = max(_CELL_INCHES, _LEAST_PANEL_INCHES / num_words)
    panels_width = len(shown) * (num_words * cell + 0.3)
    height = _HEADER_INCHES + 0.09 * max(map(len, labels)) + num_words * cell + 1.0
    figure = Figure(figsize=(_CROP_CELLS * cell + panels_width + 1.1, height))
    rect = (0, 0, 1, 1 - _HEADER_INCHES / height)
    figure.set_layout_engine("constrained", rect=rect, w_pad=0.12)
    about = (
        f"{teacher.name}, views of 32x128, {num_words} of {total:,} words; {quantity} in each "
        "cell, own label framed"
    )
    _draw_header(figure, about, is_random=teacher.is_random)
    ratios = [_CROP_CELLS, *[num_words] * len(shown)]
    crops, *panels = figure.subplots(1, len(ratios), width_ratios=ratios)
    _draw_views(crops, views)
    for axis, (tokens, matrix) in zip(panels, shown.items(), strict=True):
        _draw_panel(axis, matrix, scale, labels, families)
        axis.set_xlabel(f"{_TITLES[tokens]}\n{captions[tokens]}", fontsize=9, labelpad=8)
    bar = figure.colorbar(ScalarMappable(scale, _COLORS), ax=panels, aspect=30, pad=0.02)
    bar.set_label(quantity, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path, dpi=150, format="png")
    return undrawable


def _draw_header(figure: Figure, about: str, *, is_random: bool) -> None:
    def line(inches: float, text: str, **style: Any) -> None:
        x, y = 0.15 / figure.get_figwidth(), 1 - inches / figure.get_figheight()
        figure.text(x, y, text, **style)

    line(0.32, "Pictures (rows) against labels (columns)", fontsize=13, weight="bold")
    line(0.56, about, fontsize=9, color=_SOFT_INK)
    if is_random:
        note = "RANDOM weights: this says nothing of CLIP"
        line(0.78, note, fontsize=9, weight="bold", color=_WARNING)


def _draw_views(axis: Axes, views: Sequence[Pixels]) -> None:
    """Draw each view beside its row of the heat maps."""
    for row, view in enumerate(views):
        axis.imshow(view, extent=(0, 3.6, row + 0.45, row - 0.45), aspect="auto")
    axis.set_xlim(0, _CROP_CELLS)
    axis.set_ylim(len(views) - 0.5, -0.5)
    axis.set_axis_off()


def _draw_panel(
    axis: Axes,
    matrix: Floats,
    scale: Normalize,
    labels: Sequence[str],
    families: Sequence[str],
) -> None:
    axis.imshow(matrix, cmap=_COLORS, norm=scale, aspect="auto")
    axis.set_yticks([])
    axis.set_xticks(range(len(labels)))
    axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=2)
    axis.set_xticklabels(labels, rotation=90, fontsize=9, fontfamily=list(families))
    for (row, column), shade in np.ndenumerate(np.asarray(scale(matrix))):
        color = "white" if shade < 0.55 else "black"
        # Adding zero turns -0.0, which is what rounding leaves of -0.001, into 0.
        text = f"{round(float(matrix[row, column]), 2) + 0.0:.2f}".replace("0.", ".", 1)
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
        if row == column:
            axis.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color=color, linewidth=1.2)
            )


def find_fonts(text: str) -> tuple[tuple[str, ...], str]:
    """Return font families that together can draw `text`, and the characters that none can.

    matplotlib's own DejaVu Sans comes first (Latin, Greek, Cyrillic, Arabic); others are looked for
    among the installed fonts only if it lacks something.
    """
    families = ["DejaVu Sans"]
    own = Path(font_manager.findfont(families[0], fallback_to_default=False))
    missing = set(text) - _characters(own)
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        if not missing:
            break
        # matplotlib brings Last Resort along, which has a box for each character there is.
        if font.name in families or font.style != "normal" or "Last Resort" in font.name:
            continue
        drawable = _characters(Path(font.fname)) & missing
        if drawable:
            families.append(font.name)
            missing -= drawable
    return tuple(families), "".join(sorted(missing))


def _characters(path: Path) -> set[str]:
    return set(map(chr, font_manager.get_font(str(path)).get_charmap()))
