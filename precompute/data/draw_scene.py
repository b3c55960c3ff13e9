"""One synthetic word as a camera sees it on a sign, for ``--style scene``.

The letters with what stands beside them are set flat, put into perspective, coloured against a
background that is painted or cut from a picture, lit, and taken as a small JPEG. Colours,
contrast, heights and margins follow the crops of IIIT5K and ICDAR 2015: mostly smooth signs with
strong letters, some textured, dim, blurred or hidden in part.

Shapes: H crop height, W crop width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from .draw_word import Pixels, Style, draw_text, encode_jpeg, open_font, require_drawn, warp
from .paint_scene import LUMA, noise_field, paint_scene

Margins = npt.NDArray[np.float64]
"""Left, above, right and below the word, in word heights. Shape: (4,)."""

_LEFT, _BELOW = 0, 3
_PROBE_PX = 32


def draw_scene(
    label: str,
    font_path: Path,
    *,
    height_px: int,
    style: Style,
    picture: Image.Image | None,
    rng: np.random.Generator,
) -> bytes:
    """Return a JPEG of `label`, before a part of `picture` if there is one.

    Every random number comes from `rng`.
    """
    layers, margins = _set_letters(label, font_path, height_px, style, rng)
    masks_hw3 = _project(layers, margins, height_px, style, rng)
    pixels = paint_scene(masks_hw3, style, picture, rng)
    return _photograph(pixels, style, rng)


# -- letters ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Lettering:
    """How the letters of a sign are set, and where its word is on the canvas."""

    face: ImageFont.FreeTypeFont
    spacing_px: float
    bold_px: float
    canvas: tuple[int, int]
    origin: tuple[float, float]
    width: float
    height: float
    """Of the word, in pixels."""

    def draw(
        self, text: str, *, stroke_px: float = 0.0, right_px: float = 0.0, down_px: float = 0.0
    ) -> Image.Image:
        """Return the mask of a text, moved from the word's place."""
        at = (self.origin[0] + right_px, self.origin[1] + down_px)
        stroke = round(self.bold_px + stroke_px)
        return draw_text(text, self.face, self.canvas, at, self.spacing_px, stroke)


def _set_letters(
    label: str, font_path: Path, height_px: int, style: Style, rng: np.random.Generator
) -> tuple[Image.Image, Margins]:
    """Draw the word, its outline and its neighbours as the three channels of one picture.

    Returns it with the margins to leave around the word.
    """
    lettering = _choose_lettering(label, font_path, height_px, style, rng)
    size_px = lettering.face.size
    fill = lettering.draw(label)
    require_drawn(fill, label, font_path)
    if rng.random() < style.underline_rate:
        left = (lettering.canvas[0] - lettering.width) / 2
        y = (lettering.canvas[1] + lettering.height) / 2 + size_px / 12
        line = (left, y, left + lettering.width, y)
        ImageDraw.Draw(fill).line(line, 255, max(1, round(size_px / 16)))
    outline = Image.new("L", fill.size)
    if rng.random() < style.border_rate:
        outline = lettering.draw(label, stroke_px=max(1.0, size_px * rng.uniform(0.02, 0.08)))
    margins = rng.uniform(0.02, style.margin, 4)
    others = Image.new("L", fill.size)
    for side in range(4):
        if rng.random() < style.neighbor_rate / 4:
            drawn, margins[side] = _draw_neighbor(label, lettering, side, rng)
            others = ImageChops.lighter(others, drawn)
    layers = Image.merge("RGB", (fill, outline, others))
    if rng.random() < style.bend_rate:
        layers = warp(layers, Style(bend=style.bend), rng)
    return layers, margins


def _choose_lettering(
    label: str, font_path: Path, height_px: int, style: Style, rng: np.random.Generator
) -> _Lettering:
    # About as large as they will be seen: less is blurred, more is aliased.
    _, top, _, bottom = open_font(font_path, _PROBE_PX).getbbox(label)
    size_px = _PROBE_PX * height_px / max(4.0, bottom - top)
    size_px = 4 * math.ceil(min(size_px, 2.5 * height_px) / 4)
    face = open_font(font_path, size_px)
    spacing_px = size_px * rng.uniform(-0.04, 0.4) if rng.random() < style.spacing_rate else 0.0
    bold_px = size_px * rng.uniform(0.01, 0.05) if rng.random() < style.bold_rate else 0.0
    left, top, right, bottom = face.getbbox(label)
    width, height = right - left + spacing_px * (len(label) - 1), max(1.0, bottom - top)
    pad = max(size_px, math.ceil(height)) + 2
    return _Lettering(
        face=face,
        spacing_px=spacing_px,
        bold_px=bold_px,
        canvas=(math.ceil(width) + 2 * pad, math.ceil(height) + 2 * pad),
        origin=(pad - left, pad - top),
        width=width,
        height=height,
    )


def _draw_neighbor(
    label: str, lettering: _Lettering, side: int, rng: np.random.Generator
) -> tuple[Image.Image, float]:
    """Return the mask of what stands on one side, and the margin that shows a part of it."""
    text = "".join(rng.choice(list(label), len(label)))
    if side % 2:  # Another line, which may come near.
        gap, seen = rng.uniform(0.12, 0.4), rng.uniform(0.05, 0.22)
        down_px = (1 + gap) * lettering.height
        drawn = lettering.draw(text, down_px=down_px if side == _BELOW else -down_px)
        return drawn, gap + seen
    # Further away, and less than a letter is seen, or it would be read as the word's.
    em = lettering.face.size / lettering.height
    gap, seen = rng.uniform(0.25, 0.4) * em, rng.uniform(0.04, 0.15) * em
    gap_px = gap * lettering.height
    before_px = lettering.face.getlength(text) + lettering.spacing_px * len(text) + gap_px
    right_px = -before_px if side == _LEFT else lettering.width + gap_px
    return lettering.draw(text, right_px=right_px), gap + seen


def _project(
    layers: Image.Image,
    margins: Margins,
    height_px: int,
    style: Style,
    rng: np.random.Generator,
) -> Pixels:
    """See the word from aside and cut it out, in one resampling. Shape: (H, W, 3)."""
    left, top, right, bottom = layers.getchannel(0).getbbox() or (0, 0, *layers.size)
    aspect = (right - left) / (bottom - top) * rng.uniform(0.8, 1.2)
    # Cubed: most signs are seen from the front, some are not.
    turn, slant, taper, keystone = rng.uniform(-1, 1, 4) ** 3
    # Long words that rise far would be low in their crop.
    angle = turn * min(math.radians(style.rotation_deg), math.atan(0.5 / aspect))
    x = np.array([-1.0, 1.0, 1.0, -1.0]) * aspect / 2
    y = np.array([-1.0, -1.0, 1.0, 1.0]) / 2
    narrowing = 1 + 0.3 * style.perspective * keystone * y
    y *= 1 + style.perspective * taper * np.sign(x)
    x = x * narrowing + style.slant * slant * y
    x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    x += margins[0] - x.min()
    y += margins[1] - y.min()
    scale = height_px / (y.max() + margins[3])
    width_px = max(height_px // 2, round((x.max() + margins[2]) * scale))
    x += (width_px / scale - x.max() - margins[2]) / 2
    source = ((left, top), (right, top), (right, bottom), (left, bottom))
    seen = layers.transform(
        (width_px, height_px),
        Image.Transform.PERSPECTIVE,
        _homography(scale * x, scale * y, source),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(seen, np.float32) / np.float32(255)


def _homography(
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    target: tuple[tuple[int, int], ...],
) -> list[float]:
    """Return Pillow's eight coefficients that take four points (x, y) to `target`."""
    rows = np.zeros((8, 8))
    wanted = np.array(target, np.float64).T.ravel()
    ones = np.ones(4)
    rows[:4, :3] = rows[4:, 3:6] = np.stack([x, y, ones], 1)
    rows[:, 6], rows[:, 7] = -np.tile(x, 2) * wanted, -np.tile(y, 2) * wanted
    solved: list[float] = np.linalg.solve(rows, wanted).tolist()
    return solved


# -- camera -----------------------------------------------------------------------------------


def _photograph(pixels: Pixels, style: Style, rng: np.random.Generator) -> bytes:
    """Light, move, blur, add noise and compress."""
    height, width = pixels.shape[:2]
    if rng.random() < style.shading_rate:
        light = noise_field((height, width), 2, 3, rng) * rng.uniform(0.2, 0.7)
        pixels *= (1 + light)[..., None]
    if rng.random() < style.motion_rate:
        pixels = _shaken(pixels, rng)
    if rng.random() < style.grey_rate:
        pixels = np.broadcast_to((pixels @ LUMA)[..., None], pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    # Small crops were often smaller still: enlarged, or out of focus.
    shrink = 1 + style.shrink * rng.uniform(0, 1) ** 2
    if shrink > 1.1 and height / shrink > 12:
        size = (max(8, round(width / shrink)), round(height / shrink))
        small = image.resize(size, Image.Resampling.BILINEAR)
        image = small.resize(image.size, Image.Resampling.BICUBIC)
    radius_px = style.blur_px * height / 48 * rng.uniform(0, 1) ** 2
    if radius_px > 0.2:
        image = image.filter(ImageFilter.BoxBlur(radius_px))
    deviation = style.noise * rng.uniform(0, 1) ** 3
    if deviation > 0.5:
        noise = rng.standard_normal((height, width, 3), np.float32) * np.float32(deviation)
        image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    return encode_jpeg(image, style, rng)


def _shaken(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Return the mean of five pictures along the way of a camera in motion. Shape: (H, W, 3)."""
    height, width = pixels.shape[:2]
    reach_px = math.ceil(0.04 * height)
    padded = np.pad(pixels, ((reach_px, reach_px), (reach_px, reach_px), (0, 0)), "edge")
    down, right = rng.uniform(-1, 1, 2)
    mean = np.zeros_like(pixels)
    for at in np.linspace(-reach_px, reach_px, 5):
        top, left = reach_px + round(at * down), reach_px + round(at * right)
        mean += padded[top : top + height, left : left + width] / np.float32(5)
    return mean
