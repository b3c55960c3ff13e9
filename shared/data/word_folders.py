"""Word images as plain files, with a label file beside them.

The label file is ``gt.tsv``, ``gt.txt``, ``labels.tsv`` or ``labels.txt`` of lines
``file<TAB>label`` or ``file label``, or ``labels.json`` of ``{"file": "label"}``; files are
relative to its folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .images import ImageProblemError

LABEL_FILE_NAMES = ("gt.tsv", "gt.txt", "labels.tsv", "labels.txt", "labels.json")
LABEL_FILE_CONTENT = (
    "lines of 'file<TAB>label' or 'file label', or JSON {\"file\": \"label\"}, with files "
    "relative to the folder"
)

_MAX_IMAGE_BYTES = 1 << 26


class WordFolder:
    """A folder of word images, read-only; a sample's key is its file name in the label file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        label_file = find_label_file(path)
        self._root = path.resolve()
        self._labels: dict[str, str] = {}
        for name, label in read_label_file(label_file):
            # As `data import` has it: of a file named twice, the first label counts.
            self._labels.setdefault(os.path.normpath(name), label)
        if not any((self._root / name).is_file() for name in self._labels):
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
        return read_word_file(self._root, name)

    @property
    def num_bytes(self) -> int:
        """Sizes of the files that are there."""
        paths = (self._root / name for name in self._labels)
        return sum(path.stat().st_size for path in paths if path.is_file())


def find_label_file(folder: Path, *, remedy: str = "") -> Path:
    """Return the one label file in a folder, found by its name."""
    found = [folder / name for name in LABEL_FILE_NAMES if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(path.name for path in found)
    state = f"several label files: {listed}" if found else "no label file"
    raise DataError(
        f"{folder} holds {state}; expected one of {', '.join(LABEL_FILE_NAMES)}{remedy}"
    )


def read_label_file(label_file: Path) -> list[tuple[str, str]]:
    """Return (file name, label) of every entry in order; a label is empty where none is given."""
    try:
        text = label_file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{label_file} is not UTF-8 (byte {e.start}); convert it first") from e
    if label_file.suffix.lower() == ".json":
        return _read_json(label_file, text)
    # Not splitlines(): it also splits at U+2028 and the like, which a label may hold.
    lines = [line for line in text.split("\n") if line.strip()]
    # Of a file that separates by tabs, a line without one has no label, whatever spaces its name
    # holds. A tab here and there in a file that separates by spaces is one more space.
    num_with_tab = sum("\t" in line for line in lines)
    separator = "\t" if 2 * num_with_tab >= len(lines) else "[ \t]"
    entries = []
    for line in lines:
        name, *label = re.split(separator, line.strip(" \r"), maxsplit=1)
        entries.append((name.strip(), "".join(label).strip()))
    return entries


def _read_json(label_file: Path, text: str) -> list[tuple[str, str]]:
    try:
        # Pairs, since a dict would drop all but the last of entries with the same name.
        pairs = json.loads(text, object_pairs_hook=list)
    except (json.JSONDecodeError, RecursionError) as e:
        raise DataError(f"{label_file} is not JSON: {e}") from e
    is_flat = isinstance(pairs, list) and all(
        isinstance(pair, tuple) and isinstance(pair[1], str) for pair in pairs
    )
    if not is_flat:
        raise DataError(f'{label_file} is not a JSON object of {{"file": "label", ...}} texts')
    return [(name, label.strip()) for name, label in pairs]


def read_word_file(root: Path, name: str) -> bytes:
    """Return the bytes of the file `name` below `root`, which is resolved.

    Raises:
        ImageProblemError: it cannot be read, or lies elsewhere; the reason is kept short.
    """
    if not name or "\0" in name:
        raise ImageProblemError("not the name of a file")
    path = root / name
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
