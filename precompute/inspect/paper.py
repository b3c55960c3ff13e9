"""What contact sheets are drawn with."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from PIL import ImageFont

from ...shared.errors import DataError

MARGIN_PX = 24
PAPER, EDGE, INK, FAINT_INK = "#ffffff", "#d5dae1", "#1c2430", "#6b7683"
BAD_PAPER, ABSENT_PAPER = "#fbeae9", "#f1f3f6"


Font = ImageFont.FreeTypeFont


def sheet_font(size_px: int, file: Path | None = None) -> Font:
    """Return the font of a file; None: one that comes with matplotlib, so the same everywhere.

    Raises:
        DataError: the file is none.
    """
    file = file or Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    try:
        return ImageFont.truetype(file, size_px)
    except OSError as e:
        raise DataError(f"{file} is not a font ({e}); pass a .ttf, .otf or .ttc file") from e


def fitted(text: str, font: Font, width_px: int) -> str:
    """Return a text as one line, or as much of its beginning as fits."""
    text = " ".join(text.splitlines())
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text + "…"
