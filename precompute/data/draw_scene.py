"""One synthetic word as a camera sees it on a sign, for ``--style scene``.

The letters with what stands beside them are set flat, put into perspective, coloured against a
background that is painted or cut from a picture, lit, and taken as a small JPEG. Colours,
contrast, heights and margins follow the crops of IIIT5K and ICDAR 2015: mostly smooth signs with
strong letters, some textured, dim, blurred or hidden in part.

Shapes: H crop height, W crop width.
"""

from __future__ import annotations

import colorsys
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from .draw_word import Pixels, Style, draw_text, open_font, require_drawn, warp

Margins = npt.NDArray[np.float64]
"""Left, above, right and below the word, in word heights. Shape: (4,)."""

_LEFT, _BELOW = 0, 3
_PROBE_PX = 32
_SIGN_HUES = (0.0, 0.0, 0.03, 0.08, 0.11, 0.14, 0.36, 0.45, 0.53, 0.58, 0.61, 0.63)
"""Red, brown and orange, yellow, green, teal and blue, as often as signs have them."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


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
    pixels = _paint(masks_hw3, style, picture, rng)
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


# -- colours ----------------------------------------------------------------------------------


def _paint(
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
        letters = letters + _noise_field((height, width), 4, 8, rng)[..., None] * contrast * 0.5
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
    there, here = float(ground @ _LUMA), float(color @ _LUMA)
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
    spread = float((cut @ _LUMA).std())
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
        field = _noise_field(shape, 2, 2, rng)
    elif kind < 0.5:
        field = _noise_field(shape, 3, 9, rng)
        if rng.random() < 0.4:
            field = np.where(field > rng.uniform(-0.2, 0.2), 0.5, -0.5).astype(np.float32)
    elif kind < 0.65:  # Wood, brushed metal: long one way.
        rows, columns = int(rng.integers(8, 24)), int(rng.integers(2, 4))
        field = _resized(rng, (rows, columns) if rng.random() < 0.7 else (columns, 4 * rows), shape)
    elif kind < 0.88:  # Plaster, stone, leather.
        field = _noise_field(shape, max(4, height // 3), max(5, height // 2), rng)
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


def _noise_field(shape: tuple[int, int], low: int, high: int, rng: np.random.Generator) -> Pixels:
    """Return a smooth random field of `low` to `high` rows, from -0.5 to 0.5. Shape: (H, W)."""
    rows = int(rng.integers(low, high + 1))
    columns = max(2, round(rows * shape[1] / shape[0] * rng.uniform(0.4, 1.0)))
    return _resized(rng, (rows, columns), shape)


def _resized(rng: np.random.Generator, coarse: tuple[int, int], shape: tuple[int, int]) -> Pixels:
    image = Image.fromarray(rng.integers(0, 256, coarse, np.uint8))
    fine = image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(fine, np.float32) / np.float32(255) - np.float32(0.5)


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


# -- camera -----------------------------------------------------------------------------------


def _photograph(pixels: Pixels, style: Style, rng: np.random.Generator) -> bytes:
    """Light, move, blur, add noise and compress."""
    height, width = pixels.shape[:2]
    if rng.random() < style.shading_rate:
        light = _noise_field((height, width), 2, 3, rng) * rng.uniform(0.2, 0.7)
        pixels *= (1 + light)[..., None]
    if rng.random() < style.motion_rate:
        pixels = _shaken(pixels, rng)
    if rng.random() < style.grey_rate:
        pixels = np.broadcast_to((pixels @ _LUMA)[..., None], pixels.shape)
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
    low, high = style.jpeg_quality
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=int(rng.integers(low, high + 1)))
    return encoded.getvalue()


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
