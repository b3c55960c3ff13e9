"""Pack a folder of word images and its label file into an LMDB.

Nothing is dropped without a word: every entry that cannot be used is reported with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ...shared.data.images import decode_image
from ...shared.data.word_folders import (
    LABEL_FILE_NAMES,
    label_files_in,
    read_labels,
    read_word_file,
)
from ...shared.data.word_lmdb import WordLmdbWriter
from ...shared.errors import DataError, UsageError

_IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
)
_STRICT_BATCH = 20


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of the entries of a label file."""

    num_samples: int
    num_rejected: int
    """Entries of the label file that could not be used."""
    num_unlabelled: int
    """Images in the folder that the label file does not name."""


def import_words(
    source: Path,
    out: Path,
    *,
    label_file: Path | None = None,
    strict: bool = False,
    overwrite: bool = False,
    on_problem: Callable[[str], None],
) -> ImportReport:
    """Write every usable entry of the label file into the LMDB `out`, in the file's order.

    `on_problem` is told ``file: reason`` of each entry rejected and each image without a label.
    With `strict`, the first `_STRICT_BATCH` rejections end the import and nothing is written.

    Raises:
        DataError: nothing usable, or anything rejected when `strict`.
        UsageError: `out` exists and is not to be replaced, or no single label file in `source`.
    """
    label_file = label_file or find_label_file(source)
    root = source.resolve()
    named: set[str] = set()
    num_rejected = 0
    with WordLmdbWriter(out, overwrite=overwrite) as writer:
        entries = read_labels(label_file)
        for name, label in tqdm(entries, unit="image", desc="import", disable=None):
            try:
                image = _read_entry(root, name, label, named)
            except DataError as e:
                on_problem(f"{name or '(no name)'}: {e}")
                num_rejected += 1
                if strict and num_rejected == _STRICT_BATCH:
                    break
            else:
                writer.add(image, label)
        if strict and num_rejected:
            raise DataError(
                f"{label_file} has entries that cannot be used ({num_rejected} listed); nothing "
                "was written; mend them, or leave --strict out to import the others"
            )
        if not writer.num_samples:
            raise DataError(
                f"{label_file} names no usable image in {source}; expected lines of "
                "'file<TAB>label' or 'file label', or JSON {\"file\": \"label\"}, with files "
                "relative to that folder"
            )
        num_unlabelled = 0
        for path in _images_below(root):
            if path not in named:
                on_problem(f"{os.path.relpath(path, root)}: image without a label")
                num_unlabelled += 1
    return ImportReport(
        num_samples=writer.num_samples, num_rejected=num_rejected, num_unlabelled=num_unlabelled
    )


def find_label_file(source: Path) -> Path:
    """Return the one label file in `source`.

    Raises:
        UsageError: none, or several.
    """
    found = label_files_in(source)
    if len(found) == 1:
        return found[0]
    state = f"several label files: {', '.join(p.name for p in found)}" if found else "no label file"
    raise UsageError(
        f"{source} holds {state}; expected one of {', '.join(LABEL_FILE_NAMES)}; "
        "pass --labels FILE to choose"
    )


def _read_entry(root: Path, name: str, label: str, named: set[str]) -> bytes:
    """Return the image of one entry, or raise `DataError` with the reason, kept short."""
    key = os.path.normpath(root / name)
    if key in named:
        raise DataError("named more than once; the first label counts")
    named.add(key)
    if not label:
        raise DataError("no label")
    try:
        label.encode()
    except UnicodeEncodeError:
        raise DataError("label is not valid Unicode") from None
    encoded = read_word_file(root, name)
    decode_image(encoded)
    return encoded


def _images_below(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in _IMAGE_SUFFIXES:
                yield os.path.join(folder, name)
