"""Where pictures of words come from: files, folders, patterns, a stream, and pixels in memory."""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...shared.data.folders import as_text, files_below
from ...shared.data.images import IMAGE_SUFFIXES, ImageProblemError, decode_image, to_rgb
from ...shared.errors import DataError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""A picture of one word: a path, an encoded image, a Pillow image, or pixels.

Shape of pixels: (height, width, 3) RGB, or (height, width) grey; uint8.
"""


def load_picture(source: ImageSource) -> Image.Image:
    """Return a picture as RGB.

    Raises:
        ImageProblemError: it is none, or damaged.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, bytes):
        return decode_image(source)
    if isinstance(source, np.ndarray):
        is_sized = source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)
        if source.dtype != np.uint8 or not is_sized or 0 in source.shape:
            raise ImageProblemError(
                f"pixels are {source.dtype} of shape {source.shape}, expected uint8 of shape "
                "(height, width, 3) or (height, width)"
            )
        return Image.fromarray(source).convert("RGB")
    try:
        return decode_image(Path(source).read_bytes())
    except OSError as e:
        raise ImageProblemError(e.strerror or "cannot be read") from e


def find_pictures(names: Sequence[str]) -> Iterator[Path | DataError]:
    """Yield the pictures meant by files, folders (with all below them) and glob patterns.

    What means none yields a `DataError` that names it.
    """
    for name in names:
        path = Path(name)
        if path.is_dir():
            try:
                found = files_below(path, IMAGE_SUFFIXES)
            except DataError as e:
                yield e
                continue
            yield from found
            if not found and (path / "data.mdb").exists():
                yield DataError(f"{path}: an LMDB; read it with: clipocr eval RUN --data {path}")
            elif not found:
                suffixes = " ".join(sorted(IMAGE_SUFFIXES))
                yield DataError(f"{path}: no picture in this folder ({suffixes})")
        elif glob.has_magic(name) and not path.exists():
            matches = sorted(glob.glob(name, recursive=True))
            yield from find_pictures(matches)
            if not matches:
                yield DataError(f"{name}: no file has such a name")
        else:
            yield path


def pictures_of_stream(data: bytes) -> Iterator[Path | bytes | DataError]:
    """Yield what came from standard input: one encoded image as it is, or a list of pictures.

    A list has one file, folder or pattern a line; empty lines mean nothing.
    """
    try:
        decode_image(data)
    except ImageProblemError as e:
        # The bytes of a name need not be UTF-8, but then they have to lead to something.
        text = os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
        names = [line for line in text.splitlines() if line]
        if "\0" not in text and all(as_text(x) == x or os.path.lexists(x) for x in names):
            yield from find_pictures(names)
        else:
            yield DataError(f"standard input: {e}, and no list of files either")
    else:
        yield data
