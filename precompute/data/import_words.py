"""Pack a folder of word images and its label file into an LMDB."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...shared.data.folders import files_below
from ...shared.data.images import IMAGE_SUFFIXES, decode_image
from ...shared.data.word_folders import (
    LABEL_FILE_CONTENT,
    find_label_file,
    read_label_file,
    read_word_file,
)
from ...shared.data.word_lmdb import WordLmdbWriter
from ...shared.errors import DataError, UsageError
from ...shared.progress import progress_bar
from .options import ImportOptions


def import_words(
    source: Path, out: Path, options: ImportOptions, *, on_problem: Callable[[str], None]
) -> tuple[int, int, int]:
    """Write every usable entry of the label file into the LMDB `out`, in the file's order.

    The file's names are relative to `source`. `on_problem` is told ``file: reason`` of each entry
    that is rejected and of each image without a label.

    Returns:
        How many samples were written, entries were rejected, and images are without a label.

    Raises:
        UsageError: `out` lies in `source`, or exists.
        DataError: nothing can be used.
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"{out} lies in {source}, of which it would be a second copy: clipocr eval --data "
            f"{source} would count every word twice; choose a place that is not below {source}"
        )
    label_file = options.labels or find_label_file(source, remedy="; pass --labels FILE to choose")
    root = source.resolve()
    named: set[str] = set()
    num_rejected = 0
    with WordLmdbWriter(out, overwrite=options.overwrite) as writer:
        for name, label in progress_bar(read_label_file(label_file), unit="image", desc="import"):
            try:
                image = _read_entry(root, name, label, named)
            except DataError as e:
                on_problem(f"{name or '(no name)'}: {e}")
                num_rejected += 1
            else:
                writer.add(image, label)
        if not writer.num_samples:
            raise DataError(
                f"{label_file} names no usable image in {source}; expected {LABEL_FILE_CONTENT}"
            )
        found = map(str, files_below(root, IMAGE_SUFFIXES))
        unlabelled = [path for path in found if path not in named]
        for path in unlabelled:
            on_problem(f"{os.path.relpath(path, root)}: image without a label")
    return writer.num_samples, num_rejected, len(unlabelled)


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
