"""`clipocr export`: one file of a recogniser, written only if it reads as PyTorch does.

They read the user's pictures, or else words drawn here: random characters in a font that matplotlib
ships, on noise.

Shapes: B batch, H and W height and width of a view, L label positions, C characters.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from ...shared.atomic import replacing
from ...shared.data.folders import is_text
from ...shared.data.images import make_view
from ...shared.data.word_lmdb import WordLmdb
from ...shared.errors import DataError, ExportError, UsageError
from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from ..loop.checkpoint import build_recogniser
from ..models.recogniser import Recogniser
from ..reading.pictures import ImageSource, find_pictures, load_picture
from .description import load_described
from .safetensors_file import read_safetensors, write_safetensors

PROBABILITY_TOLERANCE = 1e-4
NUM_DRAWN = 32
NUM_GIVEN = 256
"""Pictures that are taken of those given, the first ones."""

_BATCH_SIZES = (1, 7, 32)
"""Batches are cut in turn to these sizes, so that nothing stays bound to the one traced with."""

Run = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""An exported recogniser. Shape: (B, H, W, 3) -> (B, L, C + 1)."""


class Agreement(NamedTuple):
    """How an exported recogniser compared."""

    num_pictures: int
    num_texts: int
    """Different texts that were read; with one only, the pictures told little apart."""
    largest_difference: float
    """Of any class probability, up to each word's EOS."""


def export(
    run_or_checkpoint: Path,
    file_format: str,
    out: Path,
    *,
    pictures: Path | None = None,
    clip: str | None = None,
    self_contained: bool = False,
) -> Agreement:
    """Write a recogniser as ``onnx`` or ``safetensors``, if it agrees with the one in PyTorch.

    Args:
        run_or_checkpoint: What holds it.
        file_format: ``onnx``, which holds all that it takes to read; or ``safetensors``.
        out: The file to write.
        pictures: What they are compared on: an LMDB, a folder or a file; None: words drawn here.
        clip: Where CLIP's weights are; see `Recogniser.bring_clip`.
        self_contained: Whether a safetensors file holds those that the recogniser goes on with too.

    Raises:
        CheckpointError: there is no recogniser.
        DataError: no picture can be decoded.
        ExportError: the exported one reads differently.
        UsageError: what writes the format is not installed, or cannot write that name.
    """
    from .onnx_format import open_onnx, require_onnx, write_onnx

    if not is_text(out):
        raise UsageError(
            f"{out} has bytes in its name that are not UTF-8, which neither ONNX Runtime nor "
            "safetensors can open; choose another --out"
        )
    if file_format == "onnx":
        require_onnx()
    recogniser, description = load_described(run_or_checkpoint)
    recogniser.bring_clip(clip)
    if self_contained or file_format == "onnx":
        description["settings"] |= recogniser.hold_clip()
    views = drawn_views(recogniser) if pictures is None else given_views(pictures, recogniser)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        if file_format == "onnx":
            write_onnx(partial, recogniser, description)
            run = open_onnx(partial)
        else:
            write_safetensors(partial, recogniser, description)
            again = build_recogniser(read_safetensors(partial), partial)
            if not self_contained:
                again.bring_clip(clip)

            def run(views: Any) -> Any:
                return read_in_pytorch(again, views).numpy()

        return check(run, recogniser, views, what=f"the {file_format} file")


def given_views(root: Path, recogniser: Recogniser) -> npt.NDArray[np.uint8]:
    """Return a recogniser's views of the first pictures of an LMDB, a folder or a file.

    Raises:
        DataError: it holds none that can be decoded.
    """
    if (root / "data.mdb").exists():
        sources: Iterator[ImageSource | DataError] = (
            image or b"" for _, image, _ in WordLmdb(root)
        )
    else:
        sources = find_pictures([str(root)])
    views = []
    for source in islice(sources, NUM_GIVEN):
        # A broken picture says nothing of the export.
        with suppress(DataError):
            if not isinstance(source, DataError):
                views.append(_view(load_picture(source), recogniser))
    if not views:
        raise DataError(f"{root} holds no picture that can be decoded; expected cropped words")
    return np.stack(views)


def drawn_views(recogniser: Recogniser) -> npt.NDArray[np.uint8]:
    """Return views of random words of every length that a recogniser can write."""
    from matplotlib import font_manager

    rng = np.random.default_rng(0)
    characters = recogniser.tokenizer.charset.characters
    font_file = io.BytesIO(Path(font_manager.findfont("DejaVu Sans")).read_bytes())
    font = ImageFont.truetype(font_file, 24)
    views = []
    for i in range(NUM_DRAWN):
        length = 1 + i % recogniser.tokenizer.max_label_length
        word = "".join(rng.choice(list(characters), length))
        left, top, right, bottom = (int(x) for x in font.getbbox(word))
        ground = rng.integers(128, 256, (bottom - top + 8, right - left + 8, 3), np.uint8)
        image = Image.fromarray(ground)
        ImageDraw.Draw(image).text((4 - left, 4 - top), word, font=font, fill=(20, 20, 90))
        views.append(_view(image, recogniser))
    return np.stack(views)


def _view(picture: Image.Image, recogniser: Recogniser) -> npt.NDArray[np.uint8]:
    return make_view(picture, recogniser.tall, recogniser.view_px)


def check(
    run: Run, recogniser: Recogniser, views: npt.NDArray[np.uint8], *, what: str
) -> Agreement:
    """Compare an exported recogniser with the one in PyTorch, on the CPU.

    Raises:
        ExportError: they read different texts, or their probabilities differ by more than
            `PROBABILITY_TOLERANCE`.
    """
    largest, texts = 0.0, set()
    for batch in _cut(views):
        expected = read_in_pytorch(recogniser, batch)
        exported = torch.from_numpy(run(batch))
        if exported.shape != expected.shape:
            raise ExportError(
                f"{what} returns shape {tuple(exported.shape)}, expected {tuple(expected.shape)}"
            )
        read_texts, read_probabilities = recogniser.tokenizer.decode(expected)
        exported_texts, _ = recogniser.tokenizer.decode(exported)
        for i, (text, exported_text) in enumerate(zip(read_texts, exported_texts, strict=True)):
            if text != exported_text:
                raise ExportError(f"{what} reads {exported_text!r}, PyTorch {text!r}")
            end = len(read_probabilities[i])
            difference = float((exported[i, :end] - expected[i, :end]).abs().max())
            # Written so that a NaN is a failure too.
            if not difference <= PROBABILITY_TOLERANCE:
                raise ExportError(
                    f"{what} differs from PyTorch by {difference:.2g} in a probability of "
                    f"{text!r}, expected at most {PROBABILITY_TOLERANCE:g}"
                )
            largest = max(largest, difference)
        texts.update(read_texts)
    return Agreement(len(views), len(texts), largest)


def read_in_pytorch(recogniser: Recogniser, views: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return probabilities. Shape: (B, H, W, 3) -> (B, L, C + 1)."""
    images = normalize(torch.from_numpy(views), STUDENT_MEAN, STUDENT_STD)
    return recogniser.decode(images).softmax(dim=-1)


def _cut(views: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    start = 0
    for size in cycle(_BATCH_SIZES):
        if start >= len(views):
            return
        yield views[start : start + size]
        start += size
