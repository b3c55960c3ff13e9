"""PARSeq's RandAugment, which CLIP-OCR trains with, from random numbers that never change.

Three of the sixteen operations are drawn without replacement, and each is applied half of the
time, at timm's magnitude 5 of 10, to the crop in its own size. The operations are timm's
(``timm.data.auto_augment``) with PARSeq's changes (``augment.py`` and ``aa_overrides.py`` in its
``strhub/data``); those draw from global random states, these from a `Draws` made for one view.

Shapes: B rows of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence
from PIL import Image, ImageChops, ImageEnhance, ImageFilter

from ...shared.data.images import MAX_IMAGE_PIXELS
from ...shared.hashing import mix

NUM_DRAWN = 3
"""Operations drawn for a view; half of them are applied."""
ROTATION_DEG = 15
POSTER_BITS = 2
SOLARIZE_THRESHOLD = 128
SOLARIZE_ADDEND = 55
ENHANCEMENT = 0.45
"""Colour, contrast and brightness are multiplied by one plus or minus this."""
SHEAR_X, SHEAR_Y = 0.45, 0.10
"""Shift per unit of height, and per unit of width."""
TRANSLATION_X, TRANSLATION_Y = 0.05, 0.15
"""Shift as a share of the width, and of the height."""
BLUR_RADIUS_PX = 2
NOISE_MEAN = 20
FILL = (128, 128, 128)
"""What comes into the picture from outside its borders."""

Int16s = npt.NDArray[np.int16]
UInt8s = npt.NDArray[np.uint8]
UInt16s = npt.NDArray[np.uint16]
UInt64s = npt.NDArray[np.uint64]


class _Key(ISeedSequence):
    """Gives Philox its key.

    Philox has an argument for that too, but given one it first draws a seed from the operating
    system, which it then ignores: that makes it three times as slow.
    """

    def __init__(self, key: UInt64s) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> UInt64s:
        """Return the key, which Philox asks for as two words of 64 bits."""
        assert (n_words, dtype) == (2, np.uint64)
        return self._key


class Draws:
    """A stream of random choices.

    NumPy promises Philox's raw stream for good, but not what its `Generator` makes of it; so the
    choices are made here, from the raw 64-bit numbers.
    """

    def __init__(self, key: UInt64s) -> None:
        """Start the stream of a 128-bit key. Shape: (2,)."""
        # NumPy's types know only its own seed sequences; its documentation asks for the interface.
        self._philox = np.random.Philox(_Key(key))  # type: ignore[arg-type]

    def below(self, limit: int) -> int:
        """Return one of 0 … limit - 1."""
        # Lemire's multiplication without his rejection: off from uniform by limit / 2**64.
        return self._philox.random_raw() * limit >> 64

    def coin(self) -> bool:
        """Return true half of the time."""
        return self.below(2) == 1

    def signed(self, amount: float) -> float:
        """Return the amount, or its negative."""
        return amount if self.coin() else -amount

    def sample(self, limit: int, count: int) -> list[int]:
        """Return `count` different ones of 0 … limit - 1, in random order."""
        pool = list(range(limit))
        return [pool.pop(self.below(len(pool))) for _ in range(count)]

    def sixteen_bits(self, count: int) -> UInt16s:
        """Return uniform 16-bit numbers. Shape: (count,)."""
        raw = self._philox.random_raw(-(-count // 4))
        # The cast keeps a big-endian machine at the same numbers.
        return raw.astype("<u8").view("<u2")[:count]


Operation = Callable[[Image.Image, Draws], Image.Image]


def view_keys(cache_seed: int, sample_hashes: npt.ArrayLike, view_idx: int) -> UInt64s:
    """Return the keys of the draws that belong to one view of each sample. Shape: (B, 2)."""
    hashes = np.asarray(sample_hashes, np.uint64)
    return mix(cache_seed, hashes[:, None], view_idx, (0, 1))


def augment(image: Image.Image, draws: Draws) -> Image.Image:
    """Return the RGB image with some operations applied; rotation also changes its size."""
    for operation in draw_operations(draws):
        image = operation(image, draws)
    return image


def draw_operations(draws: Draws) -> list[Operation]:
    """Return the operations to apply: three drawn, each of them dropped half of the time."""
    drawn = draws.sample(len(OPERATIONS), NUM_DRAWN)
    return [OPERATIONS[idx] for idx in drawn if draws.coin()]


def auto_contrast(image: Image.Image, _: Draws) -> Image.Image:
    """Stretch each channel to 0 … 255, as `ImageOps.autocontrast` does."""
    return _look_up_channels(image, lambda some: _stretched(int(some.min()), int(some.max())))


def equalize(image: Image.Image, _: Draws) -> Image.Image:
    """Flatten each channel's histogram, as `ImageOps.equalize` does."""
    return _look_up_channels(image, _equalized)


def invert(image: Image.Image, _: Draws) -> Image.Image:
    """Make the negative."""
    return ImageChops.invert(image)


def rotate(image: Image.Image, draws: Draws) -> Image.Image:
    """Rotate by 15 degrees to either side, on a canvas grown so that no letter is cut.

    A line of pixels grows with the square of its length, and would not fit into memory. What
    would pass the size at which pictures are refused stays as it is; no word is that long.
    """
    degrees = draws.signed(ROTATION_DEG)
    filter_ = _resampling(draws)
    cos, sin = math.cos(math.radians(ROTATION_DEG)), math.sin(math.radians(ROTATION_DEG))
    width, height = image.size
    if (width * cos + height * sin) * (width * sin + height * cos) > MAX_IMAGE_PIXELS:
        return image
    return image.rotate(degrees, filter_, expand=True, fillcolor=FILL)


def posterize(image: Image.Image, _: Draws) -> Image.Image:
    """Keep each value's two highest bits."""
    return _look_up(image, _POSTERIZED)


def solarize(image: Image.Image, _: Draws) -> Image.Image:
    """Invert the values from 128 on."""
    return _look_up(image, _SOLARIZED)


def solarize_add(image: Image.Image, _: Draws) -> Image.Image:
    """Add 55 to the values below 128."""
    return _look_up(image, _SOLARIZE_ADDED)


def color(image: Image.Image, draws: Draws) -> Image.Image:
    """Raise or lower the saturation."""
    return ImageEnhance.Color(image).enhance(1 + draws.signed(ENHANCEMENT))


def contrast(image: Image.Image, draws: Draws) -> Image.Image:
    """Spread the values around the mean grey, or draw them towards it."""
    # `ImageEnhance.Contrast` takes almost twice as long on a word: it averages in Python.
    grey = np.asarray(image.convert("L"))
    mean = int(grey.sum() / grey.size + 0.5)
    factor = 1 + draws.signed(ENHANCEMENT)
    return Image.blend(Image.new("RGB", image.size, (mean, mean, mean)), image, factor)


def brightness(image: Image.Image, draws: Draws) -> Image.Image:
    """Multiply all values."""
    return ImageEnhance.Brightness(image).enhance(1 + draws.signed(ENHANCEMENT))


def shear_x(image: Image.Image, draws: Draws) -> Image.Image:
    """Slant, the top row staying in place."""
    return _transform(image, (1, draws.signed(SHEAR_X), 0, 0, 1, 0), draws)


def shear_y(image: Image.Image, draws: Draws) -> Image.Image:
    """Let the line rise or fall, the left column staying in place."""
    return _transform(image, (1, 0, 0, draws.signed(SHEAR_Y), 1, 0), draws)


def translate_x(image: Image.Image, draws: Draws) -> Image.Image:
    """Shift by 5 % of the width."""
    return _transform(image, (1, 0, draws.signed(TRANSLATION_X) * image.width, 0, 1, 0), draws)


def translate_y(image: Image.Image, draws: Draws) -> Image.Image:
    """Shift by 15 % of the height."""
    return _transform(image, (1, 0, 0, 0, 1, draws.signed(TRANSLATION_Y) * image.height), draws)


def gaussian_blur(image: Image.Image, _: Draws) -> Image.Image:
    """Blur with radius 2, or 1 where the longer side is below 75 pixels."""
    radius_px = _capped(BLUR_RADIUS_PX, image, 0.02)
    return image.filter(ImageFilter.GaussianBlur(radius_px))


def poisson_noise(image: Image.Image, draws: Draws) -> Image.Image:
    """Add Poisson noise of random sign, one value per pixel for all its channels.

    This is imgaug's ``AdditivePoissonNoise`` as PARSeq calls it. Making the mean odd turns the 20
    into 21; it is lower where the longer side is below 100 pixels.
    """
    table = _noise_table(_capped(NOISE_MEAN, image, 0.2) | 1)
    noise = table[draws.sixteen_bits(image.width * image.height)]
    pixels = np.asarray(image) + noise.reshape(image.height, image.width, 1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


OPERATIONS: tuple[Operation, ...] = (
    auto_contrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    solarize_add,
    color,
    contrast,
    brightness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    gaussian_blur,
    poisson_noise,
)
"""In timm's order, which decides what a drawn number means; so it may not change."""


_POSTERIZED = bytes(value >> (8 - POSTER_BITS) << (8 - POSTER_BITS) for value in range(256))
_SOLARIZED = bytes(255 - value if value >= SOLARIZE_THRESHOLD else value for value in range(256))
_SOLARIZE_ADDED = bytes(
    min(255, value + SOLARIZE_ADDEND) if value < SOLARIZE_THRESHOLD else value
    for value in range(256)
)


def _look_up(image: Image.Image, table: bytes) -> Image.Image:
    """Replace all values by those of a table.

    `Image.point`, which the functions of `ImageOps` call, takes 2.5 times as long on a word,
    because it rounds every entry of the table in Python.
    """
    return Image.frombytes("RGB", image.size, image.tobytes().translate(table))


def _look_up_channels(image: Image.Image, table_of: Callable[[UInt8s], bytes]) -> Image.Image:
    """Replace the values of each channel by those of the table that is made of the channel."""
    values = bytearray(image.tobytes())
    for first in range(3):
        channel = values[first::3]
        table = table_of(np.frombuffer(channel, np.uint8))
        values[first::3] = channel.translate(table)
    return Image.frombytes("RGB", image.size, values)


@cache
def _stretched(low: int, high: int) -> bytes:
    """Return the table that spreads low … high over 0 … 255, in the steps of Pillow's floats."""
    if low == high:
        return bytes(range(256))
    scale = 255 / (high - low)
    offset = -low * scale
    return bytes(min(255, max(0, int(value * scale + offset))) for value in range(256))


def _equalized(channel: UInt8s) -> bytes:
    """Return the table that makes a channel's values about equally frequent."""
    counts = np.bincount(channel, minlength=256)
    step = (channel.size - counts[channel.max()]) // 255
    if step == 0:
        return bytes(range(256))
    below = counts.cumsum() - counts
    table: UInt8s = ((below + step // 2) // step).clip(max=255).astype(np.uint8)
    return table.tobytes()


def _transform(
    image: Image.Image, inverse: tuple[float, float, float, float, float, float], draws: Draws
) -> Image.Image:
    """Fetch each pixel (x, y) from (ax + by + c, dx + ey + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, inverse, _resampling(draws), fillcolor=FILL
    )


def _resampling(draws: Draws) -> Image.Resampling:
    return Image.Resampling.BICUBIC if draws.coin() else Image.Resampling.BILINEAR


def _capped(value: int, image: Image.Image, share: float) -> int:
    """Return the value, or the share of the longer side if that is less, but at least 1."""
    return round(min(value, max(1, share * max(image.size))))


@lru_cache
def _noise_table(mean: int) -> Int16s:
    """Return the noise that each 16-bit number stands for: a sign bit, then 15 bits of Poisson.

    The fifteen bits are inverted through the distribution function, so no value's probability is
    off by more than 2**-15. Shape: (65536,).
    """
    counts = np.arange(1, 8 * mean + 16)  # Far beyond the last value that 15 bits can reach.
    shares = np.cumprod([math.exp(-mean), *(mean / counts)])
    steps = (np.arange(1 << 15) + 0.5) / (1 << 15)
    magnitudes = np.searchsorted(shares.cumsum(), steps).astype(np.int16)
    return np.concatenate([magnitudes, -magnitudes])
