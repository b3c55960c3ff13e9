"""Pack a folder or an archive of word images and their labels into an LMDB."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...shared.data.folders import files_below
from ...shared.data.images import IMAGE_SUFFIXES, decode_image
from ...shared.data.label_files import Entry, LabelReading, read_file_names, read_label_file
from ...shared.data.label_formats import LABEL_FILE_CONTENT, LABEL_FILE_NAMES
from ...shared.data.word_folders import find_label_file, read_word_file
from ...shared.data.word_lmdb import WordLmdbWriter
from ...shared.errors import DataError, UsageError
from ...shared.progress import progress_bar
from .options import ImportOptions
from .unpack import unpacked


def import_words(
    source: Path,
    out: Path,
    options: ImportOptions,
    *,
    on_problem: Callable[[str], None],
    on_note: Callable[[str], None],
) -> tuple[int, int, int]:
    """Write every usable entry of a label file into the LMDB `out`, in the file's order.

    Args:
        source: Folder, or zip or tar archive of one.
        out: The LMDB.
        options: Where the labels are, and in what form.
        on_problem: Is told ``file: reason`` of each entry that is rejected, of each image without a
            label, and of what was not unpacked.
        on_note: Is told how the labels were read.

    Returns:
        How many samples were written, entries were rejected, and images are without a label.

    Raises:
        UsageError: `out` lies in `source`, or exists.
        DataError: nothing can be used, or the labels can be read in two ways.
    """
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"{out} lies in {source}, of which it would be a second copy: clipocr eval --data "
            f"{source} would count every word twice; choose a place that is not below {source}"
        )
    # Before anything is unpacked: it may refuse.
    writer = WordLmdbWriter(out, overwrite=options.overwrite)
    with unpacked(source, out.with_name(f".{out.name}-unpacked"), on_problem) as folder:
        reading = read_labels(folder, options)
        on_note(str(reading).replace(str(folder), str(source)))
        with writer:
            return _write(writer, folder.resolve(), reading, on_problem)


def read_labels(folder: Path, options: ImportOptions) -> LabelReading:
    """Read the labels from the file that is named or found, or from the images' names."""
    root, form, label_file = folder.resolve(), options.format, options.labels
    if label_file is not None and not label_file.is_file():
        label_file = folder / label_file
        if not label_file.is_file():
            raise UsageError(f"--labels {options.labels} is no file, neither here nor in SRC")
    if label_file is None and form is None and _are_named_as_in_mjsynth(folder):
        form = "mjsynth"
    if label_file is None and form in ("mjsynth", "names"):
        return read_file_names(root, form)
    label_file = label_file or find_label_file(
        folder,
        remedy="; pass --labels FILE to choose, or --format names if the images' names are labels",
    )
    return read_label_file(label_file, root, form)


def _are_named_as_in_mjsynth(folder: Path) -> bool:
    """Whether there is no label file, and images, all of which have such names."""
    if any((folder / name).exists() for name in LABEL_FILE_NAMES):
        return False
    entries = read_file_names(folder.resolve(), "mjsynth").entries
    return bool(entries) and not any(entry.problem for entry in entries)


def _write(
    writer: WordLmdbWriter,
    root: Path,
    reading: LabelReading,
    on_problem: Callable[[str], None],
) -> tuple[int, int, int]:
    named: set[str] = set()
    num_rejected = 0
    for entry in progress_bar(reading.entries, unit="image", desc="import"):
        try:
            image = _read_entry(root, reading.base, entry, named)
        except DataError as e:
            on_problem(f"{entry.name or '(no name)'}: {e}")
            num_rejected += 1
        else:
            writer.add(image, entry.label)
    if not writer.num_samples:
        raise DataError(f"{reading.source} names no usable image; expected {LABEL_FILE_CONTENT}")
    found = map(str, files_below(root, IMAGE_SUFFIXES))
    unlabelled = [path for path in found if path not in named]
    for path in unlabelled:
        on_problem(f"{os.path.relpath(path, root)}: image without a label")
    return writer.num_samples, num_rejected, len(unlabelled)


def _read_entry(root: Path, base: Path, entry: Entry, named: set[str]) -> bytes:
    """Return the image of one entry, or raise `DataError` with the reason, kept short."""
    name, label, problem = entry
    key = os.path.normpath(base / name)
    if key in named:
        raise DataError("named more than once; the first label counts")
    named.add(key)
    if not label:
        raise DataError(problem or "no label")
    try:
        label.encode()
    except UnicodeEncodeError:
        raise DataError("label is not valid Unicode") from None
    encoded = read_word_file(base, name, root)
    decode_image(encoded)
    return encoded
