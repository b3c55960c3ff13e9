"""Predictions that somebody's model has made, read from a file instead of pictures.

A line is a sample. ``.jsonl``: an object with ``set``, ``image``, ``text`` and perhaps
``confidence``, as `Evaluation.write_predictions` leaves them; other names mean nothing. Any other
file: ``set<TAB>image<TAB>text`` and perhaps ``<TAB>confidence``, below a line of these names or
none. ``set`` is a test set's name, or another name of the same benchmark; ``image`` the sample's
number in an LMDB, from 1, or its key there, or its file in an image folder; ``text`` is as read:
the test charset is applied to it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...shared.data.text_file import lines_of, read_text
from ...shared.data.word_lmdb import WordLmdb
from ...shared.errors import DataError
from ...shared.terminal import counted
from ..reading.readers import PictureBatchReader, Text
from ..reading.words import WordPicture
from .options import EvalOptions
from .protocol import benchmark_of
from .test_sets import TestSet

SUFFIXES = (".jsonl", ".tsv")

_FIELDS = ("set", "image", "text", "confidence")
_LMDB_IMAGE = re.compile(r"(?:image-)?0*([1-9]\d*)")
_MOST_NAMED = 3
"""Rows that an error names of those that are wrong."""


class RecordedReader(PictureBatchReader):
    """Reads in every picture what a file says; `require_whole` first."""

    kind = "a file of predictions"

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            DataError: a line of it says too little.
        """
        self.name = str(path)
        self.batch_size = EvalOptions.batch_size
        self._path = path
        self._rows = _read_rows(path)
        self._texts: dict[tuple[str, Any], Text] = {}

    @property
    def file(self) -> Path:
        """The file, without its ending."""
        return self._path.with_suffix("")

    def require_whole(self, test_sets: Sequence[TestSet]) -> None:
        """Check that there is a row for every sample that counts, and none of no sample.

        Raises:
            DataError: there is not; names some of those that are missing or too many.
        """
        by_name = {test_set.name: test_set for test_set in test_sets}
        of_no_sample = []
        self._texts = {}
        for (written, image), text in self._rows.items():
            name = _find_set(written, by_name)
            key = None if name is None else _find_image(by_name[name], image)
            if name is None or key is None:
                of_no_sample.append(f"{written} {image}")
            else:
                self._texts[name, key] = text
        missing = [
            f"{test_set.name} {picture.image}"
            for test_set in test_sets
            for picture in test_set.pictures
            if (test_set.name, picture.image) not in self._texts
        ]
        problems = []
        if missing:
            problems.append(f"no row for {counted(len(missing), 'sample')} ({_some(missing)})")
        if of_no_sample:
            rows = counted(len(of_no_sample), "row")
            problems.append(f"{rows} of no sample ({_some(of_no_sample)})")
        if problems:
            raise DataError(
                f"{self._path} has {' and '.join(problems)}; expected one for every sample of "
                f"{', '.join(by_name)}, each named by set and number or file"
            )

    def prepare_word(self, word: WordPicture, picture: Image.Image) -> Text:
        """Return what the file says of a picture."""
        del picture
        return self._texts[word.set_name, word.image]

    def read_batch(self, prepared: list[Text]) -> list[Text]:
        """Return what was found."""
        return prepared


def _read_rows(path: Path) -> dict[tuple[str, str], Text]:
    """Return what was read by set and image, as they are written there."""
    rows: dict[tuple[str, str], Text] = {}
    content = read_text(path)
    try:
        for number, row in _split_rows(content, is_json=path.suffix == ".jsonl"):
            key, text = _parse_row(row)
            if key in rows:
                raise DataError(f"{' '.join(key)} is there twice, the second time in line {number}")
            rows[key] = text
    except DataError as e:
        raise DataError(f"{path}: {e}") from None
    if not rows:
        raise DataError(f"{path} holds no predictions; expected a line for each sample")
    return rows


def _split_rows(content: str, *, is_json: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the number of each line, and what it states by name."""
    for number, line in enumerate(lines_of(content), start=1):
        line = line.removesuffix("\r")
        if not line:
            continue
        if is_json:
            try:
                row = json.loads(line)
            except ValueError as e:
                raise DataError(f"line {number} is not JSON: {e}") from None
            if not isinstance(row, dict) or not {*_FIELDS[:3]} <= row.keys():
                raise DataError(
                    f"line {number} is {line:.80}; expected an object with {', '.join(_FIELDS[:3])}"
                )
        else:
            fields = line.split("\t")
            if number == 1 and tuple(fields) in (_FIELDS, _FIELDS[:3]):
                continue
            if len(fields) not in (3, 4):
                raise DataError(
                    f"line {number} has {counted(len(fields), 'field')}, expected "
                    "set<TAB>image<TAB>text or the same and <TAB>confidence"
                )
            row = dict(zip(_FIELDS, fields, strict=False))
        yield number, row


def _parse_row(row: Mapping[str, Any]) -> tuple[tuple[str, str], Text]:
    key, text, confidence = (str(row["set"]), str(row["image"])), row["text"], row.get("confidence")
    if not isinstance(text, str):
        raise DataError(f"{' '.join(key)}: text is {text!r}, expected a text")
    try:
        confidence = None if confidence in (None, "") else float(confidence)
    except (TypeError, ValueError):
        confidence = -1.0
    if confidence is not None and not 0 <= confidence <= 1:
        raise DataError(
            f"{' '.join(key)}: confidence is {row['confidence']!r}, expected a number from 0 to 1"
        )
    of_characters = row.get("character_confidence")
    if not isinstance(of_characters, list) or not all(isinstance(p, float) for p in of_characters):
        return key, Text(text, None, word_confidence=confidence)
    return key, Text(text, tuple(of_characters))


def _find_set(written: str, by_name: Mapping[str, TestSet]) -> str | None:
    """Return the test set meant by a name: the one of that name, or of that benchmark."""
    if written in by_name:
        return written
    benchmark = benchmark_of(written)
    same = [name for name in by_name if benchmark and benchmark_of(name) == benchmark]
    return same[0] if len(same) == 1 else None


def _find_image(test_set: TestSet, written: str) -> Any:
    """Return the key of the sample meant, whether it counts or not; None if there is none."""
    if isinstance(test_set.source, WordLmdb):
        number = _LMDB_IMAGE.fullmatch(written)
        is_there = number is not None and int(number[1]) <= len(test_set.source)
        return int(number[1]) if number is not None and is_there else None
    file = os.path.normpath(written)
    return file if file in test_set.source else None


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
