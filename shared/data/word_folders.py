"""Word images as plain files, with a label file beside them, or named by their labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .images import ImageProblemError
from .label_files import read_label_file
from .label_formats import LABEL_FILE_CONTENT, LABEL_FILE_NAMES, LABEL_FILES

_MAX_IMAGE_BYTES = 1 << 26
_SHOWN_CHARACTERS = 60


class WordFolder:
    """A folder of word images, read-only; a sample's key is its file name in the label file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        label_file = find_label_file(path)
        reading = read_label_file(label_file)
        self._root, self._base = path.resolve(), reading.base
        self._labels: dict[str, str] = {}
        for entry in reading.entries:
            # As `data import` has it: of a file named twice, the first label counts.
            self._labels.setdefault(os.path.normpath(entry.name), entry.label)
        if not any((self._base / name).is_file() for name in self._labels):
            raise DataError(
                f"{label_file} names no file that is there; expected {LABEL_FILE_CONTENT}"
            )

    def __len__(self) -> int:
        """Return the number of files named."""
        return len(self._labels)

    def __contains__(self, name: object) -> bool:
        """Whether the label file names a file."""
        return name in self._labels

    def labels(self) -> Iterator[tuple[str, str]]:
        """Yield (file name, raw label) of every sample in the label file's order."""
        yield from self._labels.items()

    def image(self, name: str) -> bytes:
        """Return the encoded image of a file, as `read_word_file` does."""
        return read_word_file(self._base, name, self._root)

    @property
    def num_bytes(self) -> int:
        """Sizes of the files that are there."""
        paths = (self._base / name for name in self._labels)
        return sum(path.stat().st_size for path in paths if path.is_file())


def find_label_file(folder: Path, *, remedy: str = "") -> Path:
    """Return the one label file in a folder, found by its name."""
    found = [folder / name for name in LABEL_FILE_NAMES if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{folder} holds no label file; expected {LABEL_FILES}{remedy}")
    listed = ", ".join(f"{path.name} ({_beginning_of(path)!r})" for path in found)
    raise DataError(f"{folder} holds several label files: {listed}; expected one{remedy}")


def _beginning_of(label_file: Path) -> str:
    with label_file.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline(_SHOWN_CHARACTERS).strip()


def read_word_file(base: Path, name: str, root: Path) -> bytes:
    """Return the bytes of a file.

    Args:
        base: What its name is relative to.
        name: Of the file.
        root: Resolved; the file lies below it.

    Raises:
        ImageProblemError: it cannot be read, or lies elsewhere; the reason is kept short.
    """
    if not name or "\0" in name:
        raise ImageProblemError("not the name of a file")
    path = base / name
    try:
        if not path.resolve().is_relative_to(root):
            raise ImageProblemError("outside the image folder")
        if not path.is_file():
            raise ImageProblemError("not a file" if path.exists() else "no such file")
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise ImageProblemError("file too large for a word image")
        return path.read_bytes()
    except (OSError, RuntimeError) as e:
        # RuntimeError is what resolve() makes of a loop of links.
        raise ImageProblemError(getattr(e, "strerror", None) or str(e)) from e
