"""Pack a folder of word images and its label file into an LMDB.

Every entry that cannot be used is reported with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

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
from .options import ImportOptions

_STRICT_BATCH = 20


def import_words(
    source: Path, out: Path, options: ImportOptions, *, on_problem: Callable[[str], None]
) -> tuple[int, int, int]:
    """Write every usable entry of the label file into the LMDB `out`, in the file's order.

    With `strict`, the first `_STRICT_BATCH` rejections end the import and nothing is written.

    Args:
        source: The folder that the label file's names are relative to.
        out: The LMDB.
        options: Of the command.
        on_problem: Is told ``file: reason`` of each entry rejected and each image without a label.

    Returns:
        Samples written, entries of the label file that could not be used, and images in the folder
        that the label file does not name.

    Raises:
        UsageError: `out` lies in `source`, or exists.
        DataError: nothing can be used, or with `strict` not everything.
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
        for name, label in tqdm(
            read_label_file(label_file), unit="image", desc="import", disable=None
        ):
            try:
                image = _read_entry(root, name, label, named)
            except DataError as e:
                on_problem(f"{name or '(no name)'}: {e}")
                num_rejected += 1
                if options.strict and num_rejected == _STRICT_BATCH:
                    break
            else:
                writer.add(image, label)
        if options.strict and num_rejected:
            raise DataError(
                f"{label_file} has entries that cannot be used ({num_rejected} listed); nothing "
                "was written; mend them, or leave --strict out to import the others"
            )
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
