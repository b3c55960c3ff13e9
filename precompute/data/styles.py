"""The styles that synthetic words are drawn in. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Style:
    """How far a crop strays from a printed word; zeros are a clean print.

    Rates are probabilities, everything else is the largest value of a uniform draw.
    """

    channels: int = 1
    dark_on_light: bool = False
    spacing_rate: float = 0.0
    """Letters set wider apart, by up to 0.4 of the font size."""
    bold_rate: float = 0.0
    underline_rate: float = 0.0
    border_rate: float = 0.0
    shadow_rate: float = 0.0
    rotation_deg: float = 0.0
    slant: float = 0.0
    """Horizontal shift per unit of height."""
    perspective: float = 0.0
    """Change of scale from the middle of the word to one end."""
    bend: float = 0.0
    """Rise of the baseline's arc, as a share of the room the canvas leaves for it."""
    texture: float = 0.0
    """Amplitude of the fields blended into every layer, in grey levels."""
    blur_px: float = 0.0
    noise: float = 0.0
    """Standard deviation of the pixel noise, in grey levels."""
    jpeg_quality: tuple[int, int] = (85, 95)


_MJSYNTH = Style(
    spacing_rate=0.3,
    bold_rate=0.25,
    underline_rate=0.04,
    border_rate=0.25,
    shadow_rate=0.25,
    rotation_deg=5.0,
    slant=0.35,
    perspective=0.3,
    bend=0.25,
    texture=45.0,
    blur_px=1.0,
    noise=12.0,
    jpeg_quality=(30, 90),
)
STYLES = {
    "mjsynth": _MJSYNTH,
    "color": replace(_MJSYNTH, channels=3),
    "plain": Style(dark_on_light=True, rotation_deg=1.0, noise=2.0),
}
"""``mjsynth`` is grey as the genuine crops are; ``color`` is the same in colour."""
