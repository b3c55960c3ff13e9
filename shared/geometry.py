"""What a view is, for teacher and student alike.

A view is uint8 RGB, stretched to one size without keeping the aspect ratio: 32x128, Shape: (32,
128, 3), unless a cache was built of another (CLIP-OCR ``configs/main.yaml``, PARSeq
``strhub/data/module.py``). The student sees it with mean and std 0.5, the teacher with CLIP's own.
Pillow is not needed to train on views, so it is not imported here.

Shapes: H and W height and width of a view.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Self

from .errors import UsageError

if TYPE_CHECKING:
    import torch


class ViewSize(NamedTuple):
    """The size of views, written HEIGHTxWIDTH, as in ``32x128``."""

    height_px: int
    width_px: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the size that is written so."""
        match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text, re.ASCII)
        if match is None:
            raise UsageError(f"view size is {text!r}, expected HEIGHTxWIDTH, such as 224x224")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.height_px}x{self.width_px}"


VIEW_PX = ViewSize(32, 128)
"""Of the views of CLIP-OCR, and of a cache that does not say otherwise."""

TALL = ("stretch", "rotate")
"""What may become of a tall picture; the first is the default, and a record that says neither means
it, because records were written before there was a choice."""

TALL_RATIO = 1.5
"""Height over width from which a picture is tall. PaddleOCR turns pictures from the same one."""

_PAGE_PX, _SQUARISH_PAGE_PX = 800, 600
_LINE_RATIO = 20
"""Of 11,163 real words (IIIT5K, ICDAR 2015, MJSynth) none is as large or long as any of these: the
highest has 772 rows, the largest less than twice as long as wide 496, the longest a ratio of 18."""

STUDENT_MEAN = (0.5, 0.5, 0.5)
STUDENT_STD = (0.5, 0.5, 0.5)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's preprocessing (open_clip ``OPENAI_DATASET_MEAN``, ``OPENAI_DATASET_STD``)."""


def is_turned(width_px: int, height_px: int, tall: str) -> bool:
    """Whether a picture of that size is turned by 90 degrees before it becomes a view.

    Args:
        width_px: Of the picture as it was decoded.
        height_px: Likewise.
        tall: One of `TALL`.
    """
    assert tall in TALL, tall
    return tall == "rotate" and height_px >= TALL_RATIO * width_px


def looks_like_a_page(width_px: int, height_px: int) -> bool:
    """Whether a picture has the size of a page or of a line of text, not of a word, turned or not.

    Smaller pictures of several words have the sizes of words.
    """
    shorter, longer = sorted((width_px, height_px))
    return (
        shorter >= _PAGE_PX
        or (shorter >= _SQUARISH_PAGE_PX and longer < 2 * shorter)
        or longer > _LINE_RATIO * shorter
    )


def normalize(
    views: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    """Turn uint8 views into a network's float input, on whatever device they are.

    Shape: (B, H, W, 3) uint8 -> (B, 3, H, W) float32.
    """
    pixels = views.permute(0, 3, 1, 2).float() / 255
    return (pixels - per_channel(mean, views.device)) / per_channel(std, views.device)


@lru_cache(maxsize=8)
def per_channel(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    """Return one value per channel, made once: a copy to a GPU would wait for all its work.

    Shape: (3, 1, 1).
    """
    import torch

    return torch.tensor(values, device=device).view(3, 1, 1)
