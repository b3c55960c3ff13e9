"""Reading cropped words from pictures: the Python call, and what ``clipocr read`` is made of.

    import clipocr

    reader = clipocr.load("run")
    print(reader.read("word.png").text)

One picture is one word. Finding the words of a page is another program's work.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ...shared.ahead import map_ahead
from ...shared.data.images import ImageProblemError, decode_image, stretch
from ...shared.device import choose_device
from ...shared.errors import DataError, UsageError
from ..evaluation.evaluate import Reading, read_views
from ..loop.checkpoint import load_student
from ..models.student import Student

ImageSource = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""A picture of one word: a path, an encoded image, a Pillow image, or pixels.

Shape of pixels: (height, width, 3) RGB, or (height, width) grey; uint8.
"""

IMAGE_SUFFIXES = frozenset(
    ".bmp .gif .jp2 .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
"""What is taken of a folder; a file that is named is tried whatever its name."""

_DECODE_THREADS = 2
_BATCHES_AHEAD = 2

_PAGE_PIXELS = 1_000_000
"""Of the 3,000 test crops of IIIT5k, no one has more than a third of this."""

_Source = TypeVar("_Source", bound=ImageSource)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome(Generic[_Source]):
    """What came of one picture."""

    source: _Source
    result: Reading | ImageProblemError
    looks_like_a_page: bool


class Reader:
    """A trained student that reads pictures of single words."""

    def __init__(self, student: Student, *, batch_size: int = 64) -> None:
        """Wrap a student in eval mode, on its device.

        Args:
            student: From `load_student`.
            batch_size: Pictures at once.
        """
        if batch_size < 1:
            raise UsageError(f"batch size is {batch_size}, expected 1 or more")
        self.student = student
        self.batch_size = batch_size

    @classmethod
    def load(
        cls, run: str | os.PathLike[str], *, device: str = "auto", batch_size: int = 64
    ) -> Reader:
        """Load the student of a run folder, a checkpoint or a ``model.safetensors``.

        Args:
            run: What ``clipocr train`` or ``clipocr pull`` wrote.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto is CUDA if there is one.
            batch_size: Pictures at once.

        Raises:
            CheckpointError: there is none, or it is damaged.
            UsageError: no such device.
        """
        return cls(load_student(Path(run), choose_device(device)), batch_size=batch_size)

    def read(self, image: ImageSource) -> Reading:
        """Read one picture.

        Raises:
            ImageProblemError: it is no picture, or damaged.
        """
        (outcome,) = self.outcomes([image])
        if isinstance(outcome.result, ImageProblemError):
            raise outcome.result
        return outcome.result

    def read_all(self, images: Iterable[ImageSource]) -> Iterator[Reading | ImageProblemError]:
        """Read any number of pictures in batches, in order; one that is none yields its problem."""
        for outcome in self.outcomes(images):
            yield outcome.result

    def outcomes(self, images: Iterable[_Source]) -> Iterator[Outcome[_Source]]:
        """Read pictures in batches, in order, and keep what is known of each."""
        with ThreadPoolExecutor(_DECODE_THREADS) as executor:
            batches = _batches(images, self.batch_size)
            for batch in map_ahead(executor, _decode_batch, batches, _BATCHES_AHEAD):
                yield from self._read_batch(batch)

    def _read_batch(
        self, batch: list[tuple[_Source, npt.NDArray[np.uint8] | ImageProblemError, bool]]
    ) -> Iterator[Outcome[_Source]]:
        views = [view for _, view, _ in batch if not isinstance(view, ImageProblemError)]
        readings: Iterator[Reading] = iter(())
        if views:
            device = next(self.student.parameters()).device
            stacked = torch.from_numpy(np.stack(views)).to(device)
            readings = iter(read_views(self.student, stacked, "fp32"))
        for source, view, is_page in batch:
            result = view if isinstance(view, ImageProblemError) else next(readings)
            yield Outcome(source=source, result=result, looks_like_a_page=is_page)


def load_picture(source: ImageSource) -> Image.Image:
    """Return a picture as RGB.

    Raises:
        ImageProblemError: it is none, or damaged.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, bytes):
        return decode_image(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or 0 in source.shape:
            raise ImageProblemError(
                f"pixels are {source.dtype} of shape {source.shape}, expected uint8 of shape "
                "(height, width, 3) or (height, width)"
            )
        if source.ndim == 3 and source.shape[2] != 3:
            raise ImageProblemError(f"pixels have {source.shape[2]} channels, expected 3 (RGB)")
        return Image.fromarray(source).convert("RGB")
    try:
        return decode_image(Path(source).read_bytes())
    except OSError as e:
        raise ImageProblemError(e.strerror or "cannot be read") from e


def looks_like_a_page(width_px: int, height_px: int) -> bool:
    """Whether a picture is too large, or too tall, to be the crop of one horizontal word."""
    return width_px * height_px > _PAGE_PIXELS or height_px > max(2 * width_px, 100)


def find_pictures(names: Sequence[str]) -> Iterator[Path | DataError]:
    """Yield the pictures meant by files, folders (with all below them) and glob patterns.

    What means none yields a `DataError` that names it.
    """
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            yield from found
            if not found:
                yield _nothing_in(path)
        elif glob.has_magic(name) and not path.exists():
            matches = sorted(glob.glob(name, recursive=True))
            yield from (
                find_pictures(matches)
                if matches
                else [DataError(f"{name}: no file has such a name")]
            )
        else:
            yield path


def pictures_of_stream(data: bytes) -> Iterator[Path | bytes | DataError]:
    """Yield what came from standard input: one encoded image as it is, or a list of pictures.

    A list is UTF-8, one file, folder or pattern a line; empty lines mean nothing.
    """
    try:
        decode_image(data)
    except ImageProblemError as e:
        try:
            lines = data.decode()
        except UnicodeDecodeError:
            yield DataError(f"standard input: {e}, and no list of files in UTF-8 either")
        else:
            yield from find_pictures([line for line in lines.splitlines() if line])
    else:
        yield data


def _nothing_in(folder: Path) -> DataError:
    if (folder / "data.mdb").exists():
        return DataError(f"{folder}: an LMDB; read it with: clipocr eval RUN --data {folder}")
    return DataError(f"{folder}: no picture in this folder ({' '.join(sorted(IMAGE_SUFFIXES))})")


def _batches(images: Iterable[_Source], batch_size: int) -> Iterator[list[_Source]]:
    iterator = iter(images)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def _decode_batch(
    batch: list[_Source],
) -> list[tuple[_Source, npt.NDArray[np.uint8] | ImageProblemError, bool]]:
    decoded: list[tuple[_Source, npt.NDArray[np.uint8] | ImageProblemError, bool]] = []
    for source in batch:
        try:
            picture = load_picture(source)
        except ImageProblemError as e:
            decoded.append((source, e, False))
        else:
            decoded.append((source, stretch(picture), looks_like_a_page(*picture.size)))
    return decoded
