"""From encoded image bytes to a view, with Pillow."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import DataError
from ..geometry import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX

MAX_IMAGE_PIXELS = 1 << 25
"""A word crop above 32 megapixels is a mistake or an attack; it is refused before decoding."""

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
"""What is tried. Pillow knows thirty more, and opens EPS by running Ghostscript on it."""

_BOMB_FILTER = ("ignore", None, Image.DecompressionBombWarning, None, 0)


class ImageProblemError(DataError):
    """Encoded image bytes that cannot become a view; the message is the reason, kept short."""


def decode_image(encoded: bytes) -> Image.Image:
    """Decode to an RGB picture, alpha dropped and 16-bit grey scaled to 8 bits.

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
        image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise ImageProblemError("image too large") from None
    except Exception as e:
        # Pillow's plugins raise whatever their parsers hit (SyntaxError, struct.error, ...).
        raise ImageProblemError("not an image") from e
    with image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise ImageProblemError("image too large")
        try:
            if image.mode.startswith("I"):
                # 16-bit grey, in "I" by older Pillows; its own conversion clips above 255 to white.
                grey = (np.asarray(image) >> 8).clip(0, 255)
                return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
            if image.mode == "P":
                # Straight to RGB, Pillow warns about palettes with transparency.
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
        except Exception as e:
            raise ImageProblemError("damaged image") from e


def stretch(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Resize to a view with Pillow's bicubic filter, aspect ratio not kept. Shape: (32, 128, 3)."""
    resized = image.resize((IMAGE_WIDTH_PX, IMAGE_HEIGHT_PX), Image.Resampling.BICUBIC)
    return np.asarray(resized)
