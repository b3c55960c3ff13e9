"""What a word image is, for teacher and student alike.

A view is uint8 RGB, Shape: (32, 128, 3), stretched to that size without keeping the aspect ratio
(CLIP-OCR ``configs/main.yaml``, PARSeq ``strhub/data/module.py``). The student sees it with mean
and std 0.5, the teacher with CLIP's own.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import DataError

if TYPE_CHECKING:
    import torch

IMAGE_HEIGHT_PX = 32
IMAGE_WIDTH_PX = 128
VIEW_SHAPE = (IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, 3)

STUDENT_MEAN = (0.5, 0.5, 0.5)
STUDENT_STD = (0.5, 0.5, 0.5)

MAX_IMAGE_PIXELS = 1 << 25
"""A word crop above 32 megapixels is a mistake or an attack; it is refused before decoding."""


class ImageProblemError(DataError):
    """Encoded image bytes that cannot become a view; the message is the reason, kept short."""


def decode_image(encoded: bytes) -> Image.Image:
    """Decode to an RGB picture, alpha dropped and 16-bit grey scaled to 8 bits.

    Raises:
        ImageProblemError: not an image, damaged, truncated or absurdly large.
    """
    if not encoded:
        raise ImageProblemError("empty image")
    try:
        image = Image.open(io.BytesIO(encoded))
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
    """Resize to the view size with Pillow's bicubic filter. Shape: (32, 128, 3)."""
    resized = image.resize((IMAGE_WIDTH_PX, IMAGE_HEIGHT_PX), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def normalize(
    views: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    """Turn uint8 views into a network's float input, on whatever device they are.

    Shape: (B, 32, 128, 3) uint8 -> (B, 3, 32, 128) float32.
    """
    pixels = views.permute(0, 3, 1, 2).float() / 255
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
