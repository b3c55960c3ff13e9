"""What contact sheets are drawn with."""

from __future__ import annotations

import matplotlib
from PIL import ImageFont

MARGIN_PX = 24
PAPER, EDGE, INK, FAINT_INK = "#ffffff", "#d5dae1", "#1c2430", "#6b7683"
BAD_PAPER, ABSENT_PAPER = "#fbeae9", "#f1f3f6"


def sheet_font(size_px: int) -> ImageFont.FreeTypeFont:
    """Return a font that comes with matplotlib, and so is the same everywhere."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size_px)


def fitted(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> str:
    """Return a text, or as much of its beginning as fits."""
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text + "…"
