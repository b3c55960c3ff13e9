"""Label files of word images, in the forms in which they are found.

What form a file has is not asked but found: every form is tried, and the one under which the most
lines name a file that is there is taken. Two that fit equally well and say different things are an
error, because either could be wrong.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from .folders import files_below
from .images import IMAGE_SUFFIXES
from .label_formats import FORMATS
from .text_file import lines_of, read_text

_SAMPLED_LINES = 200
_NUMBERED = r"\d+_([^/]+)_(\d+)"


class Entry(NamedTuple):
    """What a label file says of one image."""

    name: str
    label: str
    """Empty where none is given."""
    problem: str = ""
    """Why the line says nothing in its form."""


class LabelReading(NamedTuple):
    """A label file as it was understood."""

    format: str
    """One of `FORMATS`."""
    base: Path
    """What names are relative to."""
    entries: list[Entry]
    """In the file's order."""
    source: str
    """The label file, or what else was read."""

    def __str__(self) -> str:
        shown = next((f": {e.name} is {e.label!r}" for e in self.entries if e.label), "")
        return f"Read {self.source} as {self.format} ({FORMATS[self.format]}){shown}"


def read_label_file(
    label_file: Path, root: Path | None = None, wanted: str | None = None
) -> LabelReading:
    """Read the labels of images in a folder.

    Names may be relative to that folder, to its ``images`` (docTR), to the label file, or to a
    folder or two above one of them (PaddleOCR); what most names agree with is taken.

    Args:
        label_file: Of lines, or JSON.
        root: The folder; None: the label file's.
        wanted: One of `FORMATS`; None: whatever fits.

    Raises:
        DataError: it cannot be read, or could mean two things.
    """
    root = (root or label_file.parent).resolve()
    text = read_text(label_file)
    beside = label_file.resolve().parent
    bases = [root, root / "images", beside, *root.parents[:2], *beside.parents[:2]]
    bases = list(dict.fromkeys(bases))
    suffix = label_file.suffix.lower().removeprefix(".")
    lines: Sequence[Any]
    if (wanted or suffix) == "json":
        lines, names = [[entry] for entry in _read_json(label_file, text)], ["json"]
    else:
        lines = [line for line in lines_of(text) if line.strip()]
        # The first of equal ones gives its name; a suffix says which that is.
        names = [wanted] if wanted else sorted(_PARSERS, key=lambda name: name != suffix)
    for some in (lines[:: max(1, len(lines) // _SAMPLED_LINES)], lines):
        readings = [_Reading(name, some) for name in names]
        scores = [reading.find_base(root, bases) for reading in readings]
        has_files = max(scores)[0] > 0
        if has_files:
            break
    best = [each for each, score in zip(readings, scores, strict=True) if score == max(scores)]
    if has_files and any(reading.format == "mjsynth" for reading in best):
        # Its lines say the number of the file's name once more, which no other file does.
        best = [reading for reading in best if reading.format == "mjsynth"]
    full = [_Reading(reading.format, lines, reading.base) for reading in best]
    return _the_one_that_fits(label_file, root, lines, full).result(str(label_file))


def read_file_names(root: Path, form: str) -> LabelReading:
    """Take the labels of all images below a folder from their names.

    Args:
        root: The folder, resolved.
        form: ``mjsynth`` or ``names``.
    """
    entries = []
    for path in files_below(root, IMAGE_SUFFIXES):
        name = os.path.relpath(path, root)
        if form == "names":
            entries.append(Entry(name, path.stem))
        elif match := re.fullmatch(_NUMBERED, path.stem):
            entries.append(Entry(name, match[1]))
        else:
            entries.append(Entry(name, "", f"not named {FORMATS[form]}"))
    return LabelReading(form, root, entries, "the files' names")


class _Reading:
    """Lines read in one form, and how well it fits them."""

    def __init__(self, name: str, lines: Sequence[Any], base: Path | None = None) -> None:
        self.format = name
        # What JSON holds is read already.
        parse = _PARSERS.get(name)
        self.entries: Sequence[list[Entry]] = lines if parse is None else list(map(parse, lines))
        """Of each line."""
        self.base = base or Path()

    def find_base(self, root: Path, bases: Sequence[Path]) -> tuple[int, int, int]:
        """Find what names are relative to, and return how well the form fits.

        That is: lines without a problem whose file is there, lines whose file is there, and lines
        with a label.
        """
        num_labelled = sum(bool(entries[0].label) for entries in self.entries)
        found: list[tuple[int, int, int]] = []
        for base in bases:
            there = [entries for entries in self.entries if _is_there(entries[0], root, base)]
            num_sound = sum(not entries[0].problem for entries in there)
            found.append((num_sound, len(there), num_labelled))
        self.base = bases[found.index(max(found))]
        return max(found)

    def result(self, source: str) -> LabelReading:
        lines = self.entries
        if self.format in ("csv", "tsv") and len(lines) > 1:
            first, second = (_is_image_name(line[0].name) for line in lines[:2])
            lines = lines[second and not first :]  # Without the names of the columns.
        entries = [entry for line in lines for entry in line]
        return LabelReading(self.format, self.base, entries, source)


def _the_one_that_fits(
    label_file: Path, root: Path, lines: Sequence[str], readings: Sequence[_Reading]
) -> _Reading:
    """Return the reading that fits more of the lines that others read differently."""
    chosen, *others = readings
    for other in others:
        num_chosen = num_other = 0
        example = None
        for line, a, b in zip(lines, chosen.entries, other.entries, strict=True):
            if a == b:
                continue
            fits = _fits(a[0], root, chosen.base), _fits(b[0], root, other.base)
            num_chosen, num_other = num_chosen + fits[0], num_other + fits[1]
            if any(fits) and example is None:
                example = line.strip(), a[0], b[0]
        if example is not None and num_chosen == num_other:
            line, of_chosen, of_other = example
            raise DataError(
                f"{label_file} can be read in two ways: {line!r} says that {of_chosen.name} is "
                f"{of_chosen.label!r} as {chosen.format}, and {of_other.name} {of_other.label!r} "
                f"as {other.format}; choose one by: clipocr data import --format {chosen.format}, "
                f"or --format {other.format}"
            )
        if num_other > num_chosen:
            chosen = other
    return chosen


def _fits(entry: Entry, root: Path, base: Path) -> bool:
    return not entry.problem and _is_there(entry, root, base)


def _is_there(entry: Entry, root: Path, base: Path) -> bool:
    if not entry.name or "\0" in entry.name:
        return False
    path = os.path.normpath(base / entry.name)
    return Path(path).is_relative_to(root) and os.path.isfile(path)


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _parse_tsv(line: str) -> list[Entry]:
    name, _, label = line.strip(" \r").partition("\t")
    names = [name.strip()]
    if name.startswith("["):
        # PaddleOCR lists several images of one label so.
        try:
            listed = json.loads(name)
        except (json.JSONDecodeError, RecursionError):
            listed = None
        if listed and isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            names = listed
    return [Entry(one, label.strip()) for one in names]


def _parse_space(line: str) -> list[Entry]:
    name, *label = re.split("[ \t]", line.strip(" \r"), maxsplit=1)
    return [Entry(name.strip(), "".join(label).strip())]


def _parse_icdar(line: str) -> list[Entry]:
    match = re.fullmatch(r'(.+?),\s*"((?:[^"\\]|\\.)*)"', line.strip())
    if match is None:
        return [Entry(line.partition(",")[0].strip(), "", 'not of the form: file, "label"')]
    return [Entry(match[1].strip(), re.sub(r"\\(.)", r"\1", match[2]).strip())]


def _parse_csv(line: str) -> list[Entry]:
    if re.match(r'(?:"[^"]*"|[^",]*),\s+"', line):
        # To CSV the space belongs to the label, and so do the quotes: nobody means that.
        return [Entry(line.partition(",")[0].strip(), "", "not CSV: a space before a quote")]
    try:
        fields = next(csv.reader([line.strip(" \r")], strict=True))
    except csv.Error as e:
        return [Entry(line.partition(",")[0].strip(), "", f"not CSV: {e}")]
    name, *labels = map(str.strip, fields)
    if len(labels) > 1:
        problem = f"{len(fields)} fields, expected 2; quote a label that holds a comma"
        return [Entry(name, "", problem)]
    return [Entry(name, "".join(labels))]


def _parse_mjsynth(line: str) -> list[Entry]:
    match = re.fullmatch(rf"((?:.*/)?{_NUMBERED}\.\w+)(?: (\d+))?", line.strip())
    if match is None or match[4] not in (None, match[3]):
        return [Entry(line.partition(" ")[0], "", "not of the form: NUMBER_LABEL_NUMBER.jpg")]
    return [Entry(match[1], match[2])]


_PARSERS: dict[str, Callable[[str], list[Entry]]] = {
    "mjsynth": _parse_mjsynth,
    "icdar": _parse_icdar,
    "csv": _parse_csv,
    "tsv": _parse_tsv,
    "space": _parse_space,
}


def _read_json(label_file: Path, text: str) -> list[Entry]:
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
    return [Entry(name, label.strip()) for name, label in pairs]
