"""One synthetic word, drawn through MJSynth's stages.

Jaderberg et al., "Synthetic Data and Artificial Neural Networks for Natural Scene Text
Recognition", 2014: font, border and shadow, distortion, colour, blending, noise, JPEG. Where
MJSynth blends with photographs, random fields stand in, so no images are needed.

Shapes: H crop height, W crop width, C colour channels (1 grey, 3 RGB).
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from ...shared.errors import DataError

Pixels = npt.NDArray[np.float32]

_NUM_STRIPS = 12


@dataclass(frozen=True, kw_only=True)
class Style:
    """How far a crop strays from a printed word; zeros are a clean print.

    Rates are probabilities, everything else is the largest value of a uniform draw.
    """

    height_px: tuple[int, int] = (31, 31)
    """Lowest crop, and the highest unless another is asked for."""
    upright_rate: float = 0.0
    """Words that a slanted font draws only if no upright one can: half of all fonts are slanted."""
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

    # What `draw_scene` reads beside those above, of which it leaves out dark_on_light and texture.
    margin: float = 0.0
    """Room around the word, in word heights."""
    neighbor_rate: float = 0.0
    """Other letters cut off at the border, as where a line goes on."""
    bend_rate: float = 0.0
    texture_rate: float = 0.0
    panel_rate: float = 0.0
    """The sign ends within the crop."""
    glow_rate: float = 0.0
    relief_rate: float = 0.0
    gradient_rate: float = 0.0
    wear_rate: float = 0.0
    """Letters that are not evenly coloured."""
    occlusion_rate: float = 0.0
    shading_rate: float = 0.0
    motion_rate: float = 0.0
    grey_rate: float = 0.0
    shrink: float = 0.0
    """Resolution lost before the crop has its size."""


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
    "scene": Style(
        height_px=(16, 80),
        channels=3,
        upright_rate=0.8,
        spacing_rate=0.15,
        bold_rate=0.35,
        underline_rate=0.02,
        border_rate=0.12,
        shadow_rate=0.2,
        rotation_deg=15.0,
        slant=0.4,
        perspective=0.3,
        bend=0.5,
        blur_px=1.0,
        noise=12.0,
        jpeg_quality=(40, 95),
        margin=0.3,
        neighbor_rate=0.3,
        bend_rate=0.1,
        texture_rate=0.45,
        panel_rate=0.2,
        glow_rate=0.05,
        relief_rate=0.08,
        gradient_rate=0.15,
        wear_rate=0.15,
        occlusion_rate=0.06,
        shading_rate=0.35,
        motion_rate=0.05,
        grey_rate=0.06,
        shrink=0.8,
    ),
}
"""``mjsynth`` is grey as the genuine crops are; ``color`` is the same in colour.

``scene`` follows IIIT5K and ICDAR 2015, and is drawn by `draw_scene`.
"""


@lru_cache(maxsize=1024)
def open_font(path: Path, size_px: int) -> ImageFont.FreeTypeFont:
    """Return the font at one size; kept, since loading costs more than drawing."""
    # The basic layout is in every build of Pillow; raqm is not, and it sets text differently.
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)


def draw_word(
    label: str, font_path: Path, *, height_px: int, style: Style, rng: np.random.Generator
) -> bytes:
    """Return a JPEG of `label`; every random number comes from `rng`."""
    layers = warp(_draw_layers(label, font_path, 1.4 * height_px, style, rng), style, rng)
    masks_hw3 = np.asarray(_crop(layers, height_px, rng), np.float32) / np.float32(255)
    return _encode(_compose(masks_hw3, style, rng), style, rng)


def _draw_layers(
    label: str, font_path: Path, size_px: float, style: Style, rng: np.random.Generator
) -> Image.Image:
    """Draw fill, border and shadow as the three channels of one picture, with room to warp it."""
    size_px = 8 * math.ceil(size_px / 8)
    face = open_font(font_path, size_px)
    spacing_px = size_px * rng.uniform(-0.02, 0.4) if rng.random() < style.spacing_rate else 0.0
    fill_px = rng.integers(1, 3) if rng.random() < style.bold_rate else 0
    border_px = fill_px + rng.integers(1, 4) if rng.random() < style.border_rate else 0

    left, top, right, bottom = face.getbbox(label)
    width_px = math.ceil(right - left + spacing_px * (len(label) - 1))
    pad_x, pad_y = size_px * 3 // 4, size_px // 2 + width_px // 8
    size = (width_px + 2 * pad_x, math.ceil(bottom - top) + 2 * pad_y)
    origin = (pad_x - left, pad_y - top)

    fill = draw_text(label, face, size, origin, spacing_px, int(fill_px))
    require_drawn(fill, label, font_path)
    if rng.random() < style.underline_rate:
        y = origin[1] + bottom + size_px // 12
        ImageDraw.Draw(fill).line((pad_x, y, pad_x + width_px, y), 255, max(1, size_px // 16))
    border = Image.new("L", size)
    if border_px:
        border = draw_text(label, face, size, origin, spacing_px, int(border_px))
    shadow = Image.new("L", size)
    if rng.random() < style.shadow_rate:
        reach = max(2, size_px // 10)
        dx, dy = rng.integers(-reach, reach + 1, size=2)
        shadow = ImageChops.offset(fill, int(dx), int(dy))
        shadow = shadow.filter(ImageFilter.GaussianBlur(rng.uniform(0, size_px / 24)))
    return Image.merge("RGB", (fill, border, shadow))


def draw_text(
    text: str,
    face: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    origin: tuple[float, float],
    spacing_px: float,
    stroke_px: int,
) -> Image.Image:
    """Return a mask of `size` with `text` at `origin`, letters `spacing_px` further apart."""
    layer = Image.new("L", size)
    pen = ImageDraw.Draw(layer)
    if spacing_px:
        for i, character in enumerate(text):
            x = origin[0] + face.getlength(text[:i]) + i * spacing_px
            pen.text((x, origin[1]), character, 255, face, stroke_width=stroke_px)
    else:
        pen.text(origin, text, 255, face, stroke_width=stroke_px)
    return layer


def require_drawn(mask: Image.Image, label: str, font_path: Path) -> None:
    """Check that a font has drawn something."""
    if mask.getbbox() is None:
        raise DataError(f"{font_path} draws {label!r} as nothing; remove the font or the word")


def warp(layers: Image.Image, style: Style, rng: np.random.Generator) -> Image.Image:
    """Rotate, slant, taper and bend in one resampling, as a mesh of vertical strips."""
    width, height = layers.size
    angle = math.radians(style.rotation_deg) * rng.uniform(-1, 1)
    slant = style.slant * rng.uniform(-1, 1)
    taper = style.perspective * rng.uniform(-1, 1)
    # Long words leave less room to rise and fall within the canvas.
    bend_px = style.bend * min(height / 2, width / 6) * rng.uniform(-1, 1)

    # Output points (two rows, one column per strip edge), then where each comes from.
    x = np.linspace(0, width, _NUM_STRIPS + 1).round()[None, :].repeat(2, axis=0)
    y = np.array([[0.0], [height]])
    u, v = (x - width / 2) / (width / 2), y - height / 2
    source_y = v / (1 + taper * u) - math.tan(angle) * (x - width / 2) + bend_px * (1 - u * u)
    source_x = x + slant * v + math.tan(angle) * v
    source_y += height / 2
    mesh = []
    for i in range(_NUM_STRIPS):
        corners = ((0, i), (1, i), (1, i + 1), (0, i + 1))
        quad = tuple(float(axis[at]) for at in corners for axis in (source_x, source_y))
        mesh.append(((int(x[0, i]), 0, int(x[0, i + 1]), height), quad))
    return layers.transform(
        layers.size, Image.Transform.MESH, mesh, resample=Image.Resampling.BILINEAR
    )


def _crop(layers: Image.Image, height_px: int, rng: np.random.Generator) -> Image.Image:
    """Cut around the word with uneven margins, as a detector would, and shrink to the height."""
    left, top, right, bottom = layers.getbbox() or (0, 0, *layers.size)
    word_height = bottom - top
    margins = word_height * rng.uniform(0.0, (0.2, 0.25, 0.2, 0.25))
    box = (
        max(0.0, left - margins[0]),
        max(0.0, top - margins[1]),
        min(float(layers.width), right + margins[2]),
        min(float(layers.height), bottom + margins[3]),
    )
    aspect = (box[2] - box[0]) / (box[3] - box[1]) * rng.uniform(0.8, 1.1)
    width_px = max(height_px // 2, round(aspect * height_px))
    return layers.resize((width_px, height_px), Image.Resampling.BILINEAR, box=box)


def _compose(masks_hw3: Pixels, style: Style, rng: np.random.Generator) -> Pixels:
    """Colour the layers and lay them over each other. Shape: (H, W, 3) -> (H, W, C)."""
    shape = (*masks_hw3.shape[:2], style.channels)
    background, ink = _contrasting(style, rng)
    pixels = background + _field(shape, style.texture, rng)
    for layer_idx in (2, 1):
        if style.border_rate or style.shadow_rate:
            tone = _tint(rng.uniform(0, 255), style, rng)
            opacity = masks_hw3[..., layer_idx, None] * rng.uniform(0.4, 1.0)
            pixels += opacity * (tone - pixels)
    opacity = masks_hw3[..., 0, None] * (rng.uniform(0.75, 1.0) if style.texture else 1.0)
    pixels += opacity * (ink + _field(shape, style.texture / 2, rng) - pixels)
    return pixels


def _contrasting(style: Style, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Return (background, ink), each Shape: (C,).

    The spread is that of genuine MJSynth crops: half of them stay below 95 grey levels of contrast.
    """
    contrast = 215.0 if style.dark_on_light else 40 + 190 * rng.beta(1.2, 2.0)
    dark = rng.uniform(0, 255 - contrast)
    levels = (dark + contrast, dark)
    if not style.dark_on_light and rng.random() < 0.5:
        levels = levels[::-1]
    return _tint(levels[0], style, rng), _tint(levels[1], style, rng)


def _tint(level: float, style: Style, rng: np.random.Generator) -> Pixels:
    """Return a colour of this grey level. Shape: (C,)."""
    color = np.full(style.channels, level, np.float32)
    if style.channels == 3:
        shift = rng.normal(0, 24, 3)
        color += shift - shift.mean()
    return color


def _field(shape: tuple[int, int, int], amplitude: float, rng: np.random.Generator) -> Pixels:
    """Return a smooth random field, a quarter of them cut off at a level. Shape: (H, W, C)."""
    if not amplitude:
        return np.zeros(shape, np.float32)
    height, width, channels = shape
    rows = int(rng.integers(2, 9))
    columns = max(2, round(rows * width / height * rng.uniform(0.2, 1.0)))
    field = smooth_field((rows, columns), (height, width), rng)
    if rng.random() < 0.25:
        field = np.where(field > rng.uniform(-0.2, 0.2), field, -0.5).astype(np.float32)
    # Squared: of most crops the texture is weak, of some strong.
    strength = amplitude * 2 * rng.uniform(0, 1, channels) ** 2
    return (field[..., None] * strength).astype(np.float32)


def smooth_field(
    coarse: tuple[int, int], shape: tuple[int, int], rng: np.random.Generator
) -> Pixels:
    """Return random levels of a coarse grid, enlarged, from -0.5 to 0.5. Shape: (H, W)."""
    image = Image.fromarray(rng.integers(0, 256, coarse, np.uint8))
    fine = image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(fine, np.float32) / np.float32(255) - np.float32(0.5)


def _encode(pixels_hwc: Pixels, style: Style, rng: np.random.Generator) -> bytes:
    """Blur, add noise and compress."""
    clipped = pixels_hwc.clip(0, 255).astype(np.uint8)
    image = Image.fromarray(clipped if style.channels == 3 else clipped[..., 0])
    if style.blur_px:
        image = image.filter(ImageFilter.GaussianBlur(style.blur_px * rng.uniform(0, 1) ** 2))
    if style.noise:
        deviation = style.noise * rng.uniform(0, 1) ** 2
        noisy = np.asarray(image) + rng.normal(0, deviation, np.asarray(image).shape)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return encode_jpeg(image, style, rng)


def encode_jpeg(image: Image.Image, style: Style, rng: np.random.Generator) -> bytes:
    """Compress at a quality of the style's."""
    low, high = style.jpeg_quality
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=int(rng.integers(low, high + 1)))
    return encoded.getvalue()
