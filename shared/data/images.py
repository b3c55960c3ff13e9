"""From encoded image bytes to a view, with Pillow."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import DataError
from ..geometry import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, is_turned

MAX_IMAGE_PIXELS = 1 << 25
"""A word crop above 32 megapixels is a mistake or an attack; it is refused before decoding."""

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
    "ICO": (".ico",),
    "PCX": (".pcx",),
    # Last: its files begin with no mark, so it is tried on whatever no other format knows.
    "TGA": (".tga",),
}
"""What is tried. Pillow knows thirty more, and opens EPS by running Ghostscript on it."""

IMAGE_SUFFIXES = frozenset(suffix for names in _SUFFIXES.values() for suffix in names)
"""What is taken of a folder; a file that is named is tried whatever its name."""

_BOMB_FILTER = ("ignore", None, Image.DecompressionBombWarning, None, 0)


class ImageProblemError(DataError):
    """Encoded image bytes that cannot become a view; the message is the reason, kept short."""


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats this Pillow can read, of those that are tried: AVIF only from 11.3."""
    Image.init()
    return tuple(name for name in _SUFFIXES if name in Image.OPEN)


def decode_image(encoded: bytes) -> Image.Image:
    """Decode to an RGB picture, as `to_rgb` does it.

    Of an animation the first frame; EXIF's rotation is ignored, as every STR toolkit does.

    Raises:
        ImageProblemError: not an image, damaged, truncated or absurdly large.
    """
    if not encoded:
        raise ImageProblemError("empty image")
    if _BOMB_FILTER not in warnings.filters:
        # Pillow warns from 89 megapixels on, where our own limit has long refused. Process-wide
        # filters are the only ones that hold in every thread; touched just once, since any change
        # makes Python repeat the warnings that it shows once.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        image = Image.open(io.BytesIO(encoded), formats=_formats())
    except Image.DecompressionBombError:
        raise ImageProblemError("image too large") from None
    except Exception as e:
        # Pillow's plugins raise whatever their parsers hit (SyntaxError, struct.error, ...).
        raise ImageProblemError("not an image") from e
    with image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise ImageProblemError("image too large")
        try:
            return to_rgb(image)
        except ImageProblemError:
            raise
        except Exception as e:
            raise ImageProblemError("damaged image") from e


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any kind in RGB, alpha dropped and deep grey scaled to 8 bits.

    Up to 255 grey values are taken as they are, as Pillow and the official codes do. They clip what
    is above to white; here as many of the lowest bits are dropped as the largest value has beyond
    eight, whatever the file's type has room for: 12 bits in a file of 16 use 12. Floats below 2
    are shares of white.

    Raises:
        ImageProblemError: grey values are negative, or not finite.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_of_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "P":
        # Straight to RGB, Pillow warns about palettes with transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey_of_8_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    grey = values.astype(np.float64)
    if not np.isfinite(grey).all() or grey.min() < 0:
        raise ImageProblemError("grey values are negative or not finite")
    largest = grey.max()
    if values.dtype.kind == "f" and largest < 2:  # A filter may go a little beyond 1.
        scaled = (255 * grey.clip(max=1)).round()
    else:
        scaled = np.floor(grey / 2 ** max(0, int(largest).bit_length() - 8))
    of_8_bits: npt.NDArray[np.uint8] = scaled.astype(np.uint8)
    return of_8_bits


def upright(image: Image.Image, tall: str) -> Image.Image:
    """Return a tall picture turned by 90 degrees counter-clockwise if `tall` is ``rotate``.

    Any other picture, and every picture if `tall` is ``stretch``, is returned as it is.
    """
    if is_turned(image.width, image.height, tall):
        return image.transpose(Image.Transpose.ROTATE_90)
    return image


def make_view(image: Image.Image, tall: str) -> npt.NDArray[np.uint8]:
    """Make the view that a student reads, not augmented. Shape: (32, 128, 3).

    Args:
        image: RGB, of any size.
        tall: What becomes of a tall one: the `tall` of the student.
    """
    return stretch(upright(image, tall))


def stretch(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Resize to a view with Pillow's bicubic filter, aspect ratio not kept. Shape: (32, 128, 3)."""
    resized = image.resize((IMAGE_WIDTH_PX, IMAGE_HEIGHT_PX), Image.Resampling.BICUBIC)
    return np.asarray(resized)
