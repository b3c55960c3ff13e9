"""The picture of `clipocr cache align`: a heat map for each kind of tokens, with the crops.

Shapes: N words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...shared.cache.codecs.codecs import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float32]

MOST_DRAWN = 16
"""Words in one figure; the numbers in the cells are legible up to here."""
_TITLES = {"char": "label as characters", "word": "label as a word"}
_COLORS = colormaps["cividis"]  # Perceptually uniform, and the same to the colour-blind.
_TOFU = "\N{WHITE SQUARE}"
_WARNING, _SOFT_INK = "#b3261e", "0.35"

# In inches.
_CELL, _LEAST_PANEL, _GAP, _MARGIN, _BAR = 0.42, 3.2, 0.35, 0.25, 0.16
_HEADER, _FOOTER, _PER_LETTER = 0.95, 0.75, 0.088


@dataclass(frozen=True, kw_only=True)
class DrawnAlignment:
    """What is in the figure."""

    num_words: int
    undrawable: str
    """Characters for which no font was found; a square stands for each."""


def draw_alignment(
    path: Path,
    *,
    labels: Sequence[str],
    views: Sequence[Pixels],
    matrices: Mapping[str, Floats],
    quantity: str,
    captions: Mapping[str, str],
    teacher: str,
    is_random: bool,
) -> DrawnAlignment:
    """Draw the first words' pictures against their labels.

    Args:
        path: PNG to write.
        labels: N labels.
        views: N pictures. Shape: (32, 128, 3) each.
        matrices: Kind of tokens -> its numbers, rows pictures. Shape: (N, N) each.
        quantity: What the numbers are.
        captions: Kind of tokens -> what is said below its heat map.
        teacher: ``MODEL/WEIGHTS``.
        is_random: Whether the teacher was never trained; said in the figure.
    """
    total, labels, views = len(labels), labels[:MOST_DRAWN], views[:MOST_DRAWN]
    num_words = len(labels)
    shown = {tokens: matrix[:num_words, :num_words] for tokens, matrix in matrices.items()}
    families, undrawable = find_fonts("".join(labels))
    labels = ["".join(_TOFU if c in undrawable else c for c in label) for label in labels]
    layout = _Layout(num_words, len(shown), max(map(_letters_wide, labels)))
    figure = Figure(figsize=layout.size)
    FigureCanvasAgg(figure)
    _draw_header(figure, layout, f"{num_words} of {total:,} words", quantity, teacher, is_random)
    scale = Normalize(
        min(float(matrix.min()) for matrix in shown.values()),
        max(float(matrix.max()) for matrix in shown.values()),
    )
    _draw_views(figure.add_axes(layout.crops), views)
    for panel_idx, (tokens, matrix) in enumerate(shown.items()):
        axis = figure.add_axes(layout.panel(panel_idx))
        _draw_panel(axis, matrix, scale, labels, families)
        axis.set_xlabel(f"{_TITLES[tokens]}\n{captions[tokens]}", fontsize=9, labelpad=8)
    bar = figure.colorbar(ScalarMappable(scale, _COLORS), cax=figure.add_axes(layout.bar))
    bar.set_label(quantity, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path, dpi=150, format="png")
    return DrawnAlignment(num_words=num_words, undrawable=undrawable)


class _Layout:
    """Where things are, in shares of the figure as matplotlib wants them."""

    def __init__(self, num_words: int, num_panels: int, letters_wide: int) -> None:
        cell = max(_CELL, _LEAST_PANEL / num_words)
        self._panel = num_words * cell
        self._crop = 3.7 * cell
        self._top = _HEADER + _PER_LETTER * letters_wide
        width = _MARGIN + self._crop + num_panels * (self._panel + _GAP) + _BAR + 4 * _MARGIN
        self.size = (width, self._top + self._panel + _FOOTER + _MARGIN)
        self._bottom = _FOOTER + _MARGIN
        self.crops = self._share(_MARGIN, self._crop)
        self.bar = self._share(self._panel_x(num_panels), _BAR)

    def panel(self, panel_idx: int) -> tuple[float, float, float, float]:
        return self._share(self._panel_x(panel_idx), self._panel)

    def from_top(self, inches: float) -> float:
        return 1 - inches / self.size[1]

    def _panel_x(self, panel_idx: int) -> float:
        return _MARGIN + self._crop + panel_idx * (self._panel + _GAP) + 0.1

    def _share(self, x: float, width: float) -> tuple[float, float, float, float]:
        full_width, height = self.size
        return x / full_width, self._bottom / height, width / full_width, self._panel / height


def _draw_header(
    figure: Figure, layout: _Layout, counts: str, quantity: str, teacher: str, is_random: bool
) -> None:
    x = _MARGIN / layout.size[0]
    title = "Pictures (rows) against labels (columns)"
    figure.text(x, layout.from_top(0.32), title, fontsize=13, weight="bold")
    about = f"{teacher}, views of 32x128, {counts}; {quantity} in each cell, own label framed"
    figure.text(x, layout.from_top(0.56), about, fontsize=9, color=_SOFT_INK)
    if is_random:
        note = "RANDOM weights: this says nothing of CLIP"
        figure.text(x, layout.from_top(0.78), note, fontsize=9, weight="bold", color=_WARNING)


def _draw_views(axis: Axes, views: Sequence[Pixels]) -> None:
    for row, view in enumerate(views):
        axis.imshow(view, extent=(0, 3.6, row + 0.45, row - 0.45), aspect="auto")
    axis.set_xlim(0, 3.7)
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


def _letters_wide(label: str) -> int:
    """Return how much room a label takes; East Asian characters are two letters wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in label)


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
