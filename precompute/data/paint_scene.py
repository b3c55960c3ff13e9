"""The colours of one synthetic word on a sign, for ``--style scene``.

Shapes: H crop height, W crop width.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image, ImageFilter

from .draw_word import Pixels, Style, smooth_field

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Shares of red, green and blue in how light a colour is."""

_SIGN_HUES = (0.0, 0.0, 0.03, 0.08, 0.11, 0.14, 0.36, 0.45, 0.53, 0.58, 0.61, 0.63)
"""Red, brown and orange, yellow, green, teal and blue, as often as signs have them."""


def paint_scene(
    masks_hw3: Pixels, style: Style, picture: Image.Image | None, rng: np.random.Generator
) -> Pixels:
    """Colour the background, then what lies on it. Shape: (H, W, 3) -> (H, W, 3)."""
    fill, outline, others = (masks_hw3[..., i] for i in range(3))
    height, width = fill.shape
    # Few are dim; IIIT5K's median contrast is 161 grey levels, that of ICDAR 2015 is 93.
    contrast = 60 + 160 * rng.beta(1.3, 1.2)
    if picture is not None:
        pixels, base = _cut_background(picture, (width, height), contrast, rng)
    else:
        base = _color(rng)
        pixels = base + _texture((height, width), contrast, style, rng)
    ink = _against(base, _color(rng), contrast)
    if rng.random() < style.panel_rate:
        _add_panel(pixels, fill, rng)

    solid = np.maximum(fill, outline)
    if rng.random() < style.shadow_rate:
        tone = base * rng.uniform(0.1, 0.7) if rng.random() < 0.7 else _color(rng)
        _lay(
            pixels,
            _against(ink, tone, 0.7 * contrast),
            _shadow(solid, height, rng) * rng.uniform(0.4, 1.0),
        )
    if rng.random() < style.glow_rate:
        blurred = _blurred(solid, rng.uniform(0.06, 0.2) * height)
        _lay(pixels, 0.5 * ink + 0.5 * _color(rng), (blurred * rng.uniform(0.5, 1.2)).clip(0, 1))
    if outline.any():
        _lay(pixels, _against(ink, _color(rng), max(60.0, contrast)), outline)
    _lay(pixels, ink, others)
    if rng.random() < style.relief_rate:
        # Embossed letters: lit from one side, dark on the other.
        reach_px = max(1, round(height * rng.uniform(0.02, 0.05)))
        lit = _moved(fill, -reach_px, -reach_px) - _moved(fill, reach_px, reach_px)
        pixels += (lit * rng.choice([-1, 1]) * rng.uniform(60, 140))[..., None]
    letters: Pixels = np.broadcast_to(ink, pixels.shape)
    if rng.random() < style.gradient_rate:
        end = _against(base, _color(rng), contrast)
        ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        letters = ink + ramp * (end - ink)
    if rng.random() < style.wear_rate:
        letters = letters + noise_field((height, width), 4, 8, rng)[..., None] * contrast * 0.5
    _lay(pixels, letters, fill * rng.uniform(0.9, 1.0))
    if rng.random() < style.occlusion_rate:
        _occlude(pixels, fill, rng)
    return pixels


def _color(rng: np.random.Generator) -> Pixels:
    """Return a colour that signs have: white, black, grey or strong. Shape: (3,)."""
    kind = rng.random()
    if kind < 0.45:  # Half of them as white or black as can be.
        shade = max(0.0, rng.uniform(-40, 40))
        level = 255 - shade if kind < 0.27 else 6 + shade
        return (level + rng.uniform(-0.25, 0.25, 3) * shade).astype(np.float32)
    if kind < 0.57:
        return (rng.uniform(60, 215) + rng.uniform(-22, 22, 3)).astype(np.float32)
    hue = rng.choice(_SIGN_HUES) + rng.normal(0, 0.02) if rng.random() < 0.85 else rng.random()
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.3, 0.95), rng.uniform(0.25, 0.95))
    return 255 * np.array(rgb, np.float32)


def _against(ground: Pixels, color: Pixels, contrast: float) -> Pixels:
    """Return `color`, made lighter or darker until it stands out from `ground`. Shape: (3,)."""
    there, here = float(ground @ LUMA), float(color @ LUMA)
    if abs(here - there) >= contrast:
        return color
    is_lighter = here > there if 255 - there > contrast < there else there < 128
    wanted = min(252.0, there + contrast) if is_lighter else max(3.0, there - contrast)
    if wanted > here:
        return color + (wanted - here) / max(1.0, 255 - here) * (255 - color)
    return color * np.float32(wanted / max(1.0, here))


def _cut_background(
    picture: Image.Image, size: tuple[int, int], contrast: float, rng: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """Return a random part of a picture and its mean colour. Shape: (H, W, 3), (3,)."""
    aspect = size[0] / size[1]
    largest = min(picture.width, picture.height * aspect)
    width = largest * rng.uniform(0.15, 1.0)
    left = rng.uniform(0, picture.width - width)
    top = rng.uniform(0, picture.height - width / aspect)
    box = (left, top, left + width, top + width / aspect)
    cut = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=box), np.float32)
    base: Pixels = cut.mean((0, 1))
    # Letters are lost where the background varies as much as they differ from it.
    spread = float((cut @ LUMA).std())
    return base + (cut - base) * np.float32(min(1.0, 0.3 * contrast / max(1.0, spread))), base


def _texture(
    shape: tuple[int, int], contrast: float, style: Style, rng: np.random.Generator
) -> Pixels:
    """Return what a painted background adds to its colour. Shape: (H, W, 3)."""
    height, width = shape
    kind = rng.random()
    if kind > style.texture_rate:
        return np.zeros((height, width, 3), np.float32)
    kind /= style.texture_rate
    if kind < 0.3:
        field = noise_field(shape, 2, 2, rng)
    elif kind < 0.5:
        field = noise_field(shape, 3, 9, rng)
        if rng.random() < 0.4:
            field = np.where(field > rng.uniform(-0.2, 0.2), 0.5, -0.5).astype(np.float32)
    elif kind < 0.65:  # Wood, brushed metal: long one way.
        rows, columns = int(rng.integers(8, 24)), int(rng.integers(2, 4))
        coarse = (rows, columns) if rng.random() < 0.7 else (columns, 4 * rows)
        field = smooth_field(coarse, shape, rng)
    elif kind < 0.88:  # Plaster, stone, leather.
        field = noise_field(shape, max(4, height // 3), max(5, height // 2), rng)
    else:
        field = _pattern(shape, rng)
    tint = (rng.normal(0, 0.3, 3) + 1).astype(np.float32)
    return field[..., None] * tint * np.float32(contrast * rng.uniform(0.1, 0.6))


def _pattern(shape: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Return stripes, bricks or tiles, from -0.5 to 0.5. Shape: (H, W)."""
    height, width = shape
    y, x = np.ogrid[:height, :width]
    period_px = max(4.0, height * rng.uniform(0.2, 0.8))
    if rng.random() < 0.5:
        angle = rng.choice([0.0, math.pi / 2, rng.uniform(0, math.pi)])
        along = (x * math.sin(angle) + y * math.cos(angle)) / period_px + rng.random()
        return (np.abs(along % 1 - 0.5) > rng.uniform(0.15, 0.4)).astype(np.float32) - 0.5
    row = y / period_px + rng.random()
    column = x / (period_px * rng.uniform(1, 2.5)) + 0.5 * (np.floor(row) % 2) + rng.random()
    joint = max(1.0, 0.08 * period_px) / period_px
    return ((row % 1 < joint) | (column % 1 < joint)).astype(np.float32) - 0.5


def noise_field(shape: tuple[int, int], low: int, high: int, rng: np.random.Generator) -> Pixels:
    """Return a smooth random field of `low` to `high` rows, from -0.5 to 0.5. Shape: (H, W)."""
    rows = int(rng.integers(low, high + 1))
    columns = max(2, round(rows * shape[1] / shape[0] * rng.uniform(0.4, 1.0)))
    return smooth_field((rows, columns), shape, rng)


def _add_panel(pixels: Pixels, fill: Pixels, rng: np.random.Generator) -> None:
    """Let the sign end beyond the word: a line, another colour, or both."""
    height, width = fill.shape
    rows, columns = np.flatnonzero(fill.any(1)), np.flatnonzero(fill.any(0))
    rooms = (columns[0], rows[0], width - 1 - columns[-1], height - 1 - rows[-1])
    line = max(1, round(height * rng.uniform(0.02, 0.06)))
    outside, edge = _color(rng), _color(rng)
    for side, room in enumerate(rooms):
        if room < 2 * line or rng.random() < 0.5:
            continue
        depth = int(rng.integers(1, room - line + 1))
        # Rows from this side on, whichever it is.
        turned = pixels.swapaxes(0, 1) if side % 2 == 0 else pixels
        inwards = turned[::-1] if side >= 2 else turned
        inwards[:depth] = outside
        inwards[depth : depth + line] = edge


def _shadow(mask: Pixels, height: int, rng: np.random.Generator) -> Pixels:
    """Return a soft shadow, or the sides of letters that stand out. Shape: (H, W)."""
    reach = max(1, round(height * rng.uniform(0.02, 0.09)))
    dx, dy = rng.choice([-1, 1]), int(rng.choice([-1, 1, 1, 1, 0]))
    if rng.random() < 0.5:
        sides: Pixels = np.max([_moved(mask, i * dy, i * dx) for i in range(1, reach + 1)], axis=0)
        return sides
    return _blurred(_moved(mask, reach * dy, reach * dx), rng.uniform(0, 0.05) * height)


def _moved(mask: Pixels, down: int, right: int) -> Pixels:
    """Return a mask moved, with nothing where it was not. Shape: (H, W)."""
    height, width = mask.shape
    moved = np.zeros_like(mask)
    moved[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = mask[
        max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ]
    return moved


def _blurred(mask: Pixels, radius_px: float) -> Pixels:
    image = Image.fromarray((255 * mask).astype(np.uint8))
    blurred = image.filter(ImageFilter.BoxBlur(radius_px)).filter(ImageFilter.BoxBlur(radius_px))
    return np.asarray(blurred, np.float32) / np.float32(255)


def _lay(pixels: Pixels, color: Pixels, opacity: Pixels) -> None:
    """Lay a colour over the pixels, in place. Shape: (H, W, 3), (3,) or (H, W, 3), (H, W)."""
    pixels += opacity[..., None] * (color - pixels)


def _occlude(pixels: Pixels, fill: Pixels, rng: np.random.Generator) -> None:
    """Hide a part: a bar across the word, or a leaf over less than one letter."""
    height, width = fill.shape
    y, x = np.ogrid[:height, :width]
    cx, cy = rng.uniform(0, width), rng.uniform(0.2, 0.8) * height
    if rng.random() < 0.5:
        slope = rng.choice([rng.uniform(-0.3, 0.3), rng.uniform(1.5, 8.0)])
        distance = np.abs((y - cy) - slope * (x - cx)) / math.hypot(1, slope)
        radius = height * rng.uniform(0.02, 0.06)
    else:
        distance = np.hypot((y - cy) / rng.uniform(0.6, 1.6), x - cx)
        radius = height * rng.uniform(0.06, 0.16)
    opacity = (radius + 0.5 - distance).clip(0, 1).astype(np.float32)
    _lay(pixels, _color(rng), opacity * rng.uniform(0.6, 1.0))
