"""Pack a folder of word images and its label file into an LMDB.

Nothing is dropped without a word: every entry that cannot be used is reported with its reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..shared.errors import DataError, UsageError
from ..shared.images import decode_image
from ..shared.words import WordLmdbWriter

LABEL_FILE_NAMES = ("gt.tsv", "gt.txt", "labels.tsv", "labels.txt", "labels.json")
_IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
)
_MAX_IMAGE_BYTES = 1 << 26
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
    found = [source / name for name in LABEL_FILE_NAMES if (source / name).is_file()]
    if len(found) == 1:
        return found[0]
    state = f"several label files: {', '.join(p.name for p in found)}" if found else "no label file"
    raise UsageError(
        f"{source} holds {state}; expected one of {', '.join(LABEL_FILE_NAMES)}; "
        "pass --labels FILE to choose"
    )


def read_labels(label_file: Path) -> list[tuple[str, str]]:
    """Return (file name, label) of every entry in order; a label is empty where none is given.

    Raises:
        DataError: not UTF-8, or not JSON of ``{"file": "label"}`` where the name ends in .json.
    """
    try:
        text = label_file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{label_file} is not UTF-8 (byte {e.start}); convert it first") from e
    if label_file.suffix.lower() == ".json":
        return _read_json(label_file, text)
    # Not splitlines(): it also splits at U+2028 and the like, which a label may hold.
    lines = [line for line in text.split("\n") if line.strip()]
    # One separator for the whole file: a line that lacks its tab has no label, whatever spaces
    # its file name holds.
    separator = "\t" if any("\t" in line for line in lines) else " "
    entries = []
    for line in lines:
        name, _, label = line.strip(" \r").partition(separator)
        entries.append((name.strip(), label.strip()))
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


def _read_entry(root: Path, name: str, label: str, named: set[str]) -> bytes:
    """Return the image of one entry, or raise `DataError` with the reason, kept short."""
    if not name or "\0" in name:
        raise DataError("not the name of a file")
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
    path = root / name
    try:
        if not path.resolve().is_relative_to(root):
            raise DataError("outside the image folder")
        if not path.is_file():
            raise DataError("not a file" if path.exists() else "no such file")
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise DataError("file too large for a word image")
        encoded = path.read_bytes()
    except (OSError, RuntimeError) as e:
        # RuntimeError is what resolve() makes of a loop of links.
        raise DataError(getattr(e, "strerror", None) or str(e)) from e
    decode_image(encoded)
    return encoded


def _images_below(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in _IMAGE_SUFFIXES:
                yield os.path.join(folder, name)
