"""From encoded image bytes to a view: the pixels that Pillow gives."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image

from ..errors import DataError
from ..geometry import VIEW_PX, is_turned

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

_MARKS_OF_ROTATION = (b"Exif\0\0", b"tiff:Orientation")
"""A JPEG that holds none of them, as EXIF or as XMP, is not to be turned."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by EXIF's orientation; 1 is upright."""

_BOMB_FILTER = ("ignore", None, Image.DecompressionBombWarning, None, 0)


class ImageProblemError(DataError):
    """Encoded image bytes that cannot become a view; the message is the reason, kept short."""


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats this Pillow can read, of those that are tried: AVIF only from 11.3."""
    Image.init()
    return tuple(name for name in _SUFFIXES if name in Image.OPEN)


def decode_image(encoded: bytes, *, enough_px: int | None = None) -> Image.Image:
    """Decode to an RGB picture, as `to_rgb` does it.

    Of an animation the first frame. Where sides of `enough_px` are enough, a JPEG is decoded at
    half, a quarter or an eighth of its size, because that takes a fifth of the time of a photo.

    Raises:
        ImageProblemError: not an image, damaged, truncated or absurdly large.
    """
    if not encoded:
        raise ImageProblemError("empty image")
    if enough_px is None and (sound := _sound_jpeg(encoded)) is not None:
        return sound
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
            if enough_px is not None:
                image.draft("RGB", (enough_px, enough_px))
            return to_rgb(image)
        except ImageProblemError:
            raise
        except Exception as e:
            raise ImageProblemError("damaged image") from e


def _sound_jpeg(encoded: bytes) -> Image.Image | None:
    """Return the picture of a JPEG without anything unusual; any other bytes are left to Pillow.

    On a word this takes 40 % of Pillow's time. The pixels are those of Pillow's wheels, because
    both bundle libjpeg-turbo. They are the same beside a Pillow that was built with another
    libjpeg, because simplejpeg brings its own. A picture that EXIF may turn is unusual.
    """
    if not encoded.startswith(b"\xff\xd8\xff") or any(m in encoded for m in _MARKS_OF_ROTATION):
        return None
    try:
        # Strict, which is the default: a mere warning is an error, and Pillow decides.
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
        if colorspace not in ("YCbCr", "Gray") or width * height > MAX_IMAGE_PIXELS:
            return None
        # Pillow's RGB has a fourth byte too, so this is copied as it is.
        pixels = simplejpeg.decode_jpeg(encoded, "RGBX")
    except Exception:
        return None
    return Image.frombytes("RGB", (width, height), pixels, "raw", "RGBX")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any kind in RGB: upright, alpha dropped, deep grey scaled to 8 bits.

    Upright is what EXIF calls so, because cameras and phones store pictures as the sensor lay, and
    every viewer turns them.

    Up to 255 grey values are taken as they are, as Pillow and the official codes do. They clip what
    is above to white; here as many of the lowest bits are dropped as the largest value has beyond
    eight, whatever the file's type has room for: 12 bits in a file of 16 use 12. Floats below 2
    are shares of white.

    Raises:
        ImageProblemError: grey values are negative, or not finite.
    """
    if image.mode.startswith("I") or image.mode == "F":
        rgb = Image.fromarray(_grey_of_8_bits(np.asarray(image))).convert("RGB")
    elif image.mode == "P":
        # Straight to RGB, Pillow warns about palettes with transparency.
        rgb = image.convert("RGBA").convert("RGB")
    else:
        rgb = image.convert("RGB")
    # After the pixels are loaded: Pillow turns a TIFF then, and takes the orientation away.
    how = _UPRIGHT.get(_orientation(image))
    return rgb if how is None else rgb.transpose(how)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # Of damaged EXIF Pillow raises whatever its parser hits; the pixels are sound.
        return None


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
    """Return a tall picture turned by 90 degrees counter-clockwise if `tall` is ``rotate``."""
    if is_turned(image.width, image.height, tall):
        return image.transpose(Image.Transpose.ROTATE_90)
    return image


def make_view(image: Image.Image, tall: str, view_px: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Make the view of an RGB picture, not augmented, for a recogniser of those attributes.

    Shape: (H, W, 3), `view_px` being (H, W).
    """
    return stretch(upright(image, tall), view_px)


def stretch(image: Image.Image, view_px: tuple[int, int] = VIEW_PX) -> npt.NDArray[np.uint8]:
    """Resize to a view with Pillow's bicubic filter, aspect ratio not kept.

    Shape: (H, W, 3), `view_px` being (H, W).
    """
    height, width = view_px
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def center_crop(image: Image.Image, side_px: int) -> npt.NDArray[np.uint8]:
    """Resize the shorter side and keep the middle, as CLIP's own preprocessing does.

    Shape: (side, side, 3).
    """
    scale = side_px / min(image.size)
    width, height = (max(side_px, int(scale * length)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side_px) / 2), round((height - side_px) / 2)
    return np.asarray(resized.crop((left, top, left + side_px, top + side_px)))
