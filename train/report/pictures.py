"""Pictures for the page: the samples' own, and where a recogniser looked.

All are encoded anew: no byte of a data set gets into the page as it is.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from PIL import Image

from ...shared.data.images import decode_image, make_view
from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from ..models.recogniser import Recogniser

_MAX_WIDTH_PX, _MAX_HEIGHT_PX = 320, 96
_JPEG_QUALITY = 80
_HEAT = colormaps["inferno"]
_HEAT_OPACITY = 0.75


class AttentionPicture(NamedTuple):
    """Where a recogniser looked when it wrote one character."""

    character: str
    """Empty for EOS."""
    picture: str
    """Data URI of the view with the weights over it."""
    elsewhere: float
    """Weight of tokens that are no place in the picture, such as a class token; 0 to 1."""


def picture_uri(encoded: bytes) -> str:
    """Return a sample's picture as a data URI, its size bounded."""
    picture = decode_image(encoded)
    picture.thumbnail((_MAX_WIDTH_PX, _MAX_HEIGHT_PX))
    return _data_uri(picture)


def png_uri(path: Path) -> str:
    """Return a chart of ours as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def attention_pictures(
    recogniser: Recogniser, encoded: bytes, text: str
) -> list[AttentionPicture] | None:
    """Return where a recogniser looked for each character of the `text` it read, and for EOS.

    None of a recogniser that cannot say.
    """
    view = make_view(decode_image(encoded), recogniser.tall, recogniser.view_px)
    device = next(recogniser.parameters()).device
    images = normalize(torch.tensor(view[None], device=device), STUDENT_MEAN, STUDENT_STD)
    # A text without EOS may have one character more than a label.
    num_positions = recogniser.tokenizer.max_label_length + 1
    token_ids_BL = recogniser.tokenizer.encode([text])[:, : num_positions + 1].to(device)
    attention = recogniser.image_attention(images, token_ids_BL)
    if attention is None:
        return None
    characters = [*text, ""][:num_positions]
    return [
        AttentionPicture(character, _data_uri(_with_heat(view, places)), float(elsewhere))
        for character, places, elsewhere in zip(
            characters,
            attention.places[0].float().cpu().numpy(),
            attention.elsewhere[0].float().cpu().numpy(),
            strict=True,
        )
    ]


def _with_heat(view: npt.NDArray[np.uint8], places: npt.NDArray[np.float32]) -> Image.Image:
    """Lay weights over a view; the heaviest place is brightest. Shapes: (H, W, 3), any 2-D."""
    heat = Image.fromarray(places / max(float(places.max()), 1e-12))
    resized = heat.resize(view.shape[1::-1], Image.Resampling.BILINEAR)
    weights = np.asarray(resized)[..., None]
    grey = view.mean(axis=2, keepdims=True).repeat(3, axis=2)
    colours = 255 * _HEAT(weights[..., 0])[..., :3]
    opacity = _HEAT_OPACITY * weights
    return Image.fromarray((grey * (1 - opacity) + colours * opacity).astype(np.uint8))


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    # Pixels alone: Pillow would carry a file's comments and colour profile over.
    pixels = Image.fromarray(np.asarray(picture))
    pixels.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
