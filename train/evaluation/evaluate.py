"""Reading test sets by PARSeq's protocol, with a trained recogniser or with anybody's function.

Label and text both pass through the test charset. A recogniser decodes all its positions, never
just as many as the label has. Every word that was read is kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...shared.charset import Charset
from ...shared.errors import UsageError
from ...shared.progress import progress_bar
from ..reading.readers import FunctionReader, PictureBatchReader, PictureReader, load_reader
from ..reading.words import ReadWord, WordPicture
from .options import EvalOptions
from .predictions import SUFFIXES, RecordedReader
from .results import Evaluation, SetResult
from .test_sets import TestSet, open_test_sets


def evaluate(
    reader: str | os.PathLike[str] | PictureBatchReader | PictureReader,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    charset: str = "36",
    batch_size: int = EvalOptions.batch_size,
    name: str | None = None,
) -> Evaluation:
    """Measure word accuracy on every test set at or below some folders, as PARSeq does.

    Any model can be measured: a function from a list of pictures to a list of texts is enough. It
    is given RGB pictures as they were decoded, of any size and not stretched. A picture that cannot
    be decoded counts as wrong and is not handed to it. It says nothing of probabilities, so tables
    show "-" for its confidence, and a report leaves out calibration and attention. What it read
    elsewhere may come in a file.

    Args:
        reader: A run folder or checkpoint; what `load` returned, which also takes device and
            precision; a function as above; or predictions, a ``.jsonl`` or ``.tsv``.
        data: Folder or folders with test sets at any depth: LMDBs, and image folders with a label
            file. Benchmarks are known by their folders' names and averaged in groups.
        charset: Test charset, which label and text pass through: ``36``, ``62``, ``94``, or a text
            file.
        batch_size: Pictures at once, of a run or a function; what `load` returned has its own.
        name: What tables and reports call a function; None: its own name.

    Raises:
        CheckpointError: the run has no checkpoint, or it is damaged.
        DataError: no test set, or one that cannot be used; or predictions of other samples.
        UsageError: the function returned something else than one text per picture, or `reader`
            is nothing that reads.
    """
    if isinstance(reader, str | os.PathLike):
        path = Path(reader)
        reader = (
            RecordedReader(path)
            if path.suffix in SUFFIXES
            else load_reader(path, batch_size=batch_size)
        )
    elif not isinstance(reader, PictureBatchReader):
        if not callable(reader):
            raise UsageError(
                f"reader is a {type(reader).__name__}; expected a run folder or checkpoint, what "
                "clipocr.load returned, or a function from a list of pictures to a list of texts"
            )
        reader = FunctionReader(reader, batch_size=batch_size, name=name)
    roots = [data] if isinstance(data, str | os.PathLike) else data
    paths = [Path(root) for root in roots]
    return evaluate_sets(
        reader, open_test_sets(paths, Charset.load(charset), reader.max_label_length)
    )


def evaluate_sets(reader: PictureBatchReader, test_sets: Sequence[TestSet]) -> Evaluation:
    """Read every picture of some test sets under one test charset, with bars on stderr."""
    (evaluation,) = evaluate_charsets(reader, [test_sets])
    return evaluation


def evaluate_charsets(
    reader: PictureBatchReader, of_charsets: Sequence[Sequence[TestSet]]
) -> list[Evaluation]:
    """Read every picture once, and return an evaluation under each of several test charsets.

    Args:
        reader: What reads.
        of_charsets: The test sets as each charset has them; one that a charset empties is not
            among its.

    Raises:
        DataError: the reader has predictions of other samples.
    """
    merged = merge_test_sets(of_charsets)
    require_predictions(reader, merged)
    read: dict[str, dict[Any, ReadWord]] = {}
    for test_set in merged:
        words = reader.words(test_set.pictures, test_set.load)
        bar = progress_bar(words, total=len(test_set.pictures), desc=test_set.name, unit="image")
        read[test_set.name] = {word.image: word for word in bar}
    return [
        Evaluation(
            reader=reader,
            sets=tuple(SetResult.under(some, read[some.name]) for some in test_sets),
        )
        for test_sets in of_charsets
    ]


def merge_test_sets(of_charsets: Sequence[Sequence[TestSet]]) -> list[TestSet]:
    """Return each test set with every sample that counts under one of several charsets."""
    sets = {some.name: some for test_sets in of_charsets for some in test_sets}
    pictures: dict[str, dict[Any, WordPicture]] = {name: {} for name in sets}
    for test_set in (some for test_sets in of_charsets for some in test_sets):
        pictures[test_set.name] |= {picture.image: picture for picture in test_set.pictures}
    return [replace(sets[name], pictures=[*some.values()]) for name, some in pictures.items()]


def require_predictions(reader: PictureBatchReader, test_sets: Sequence[TestSet]) -> None:
    """Check that predictions are of the samples of some test sets, if the reader has predictions.

    Raises:
        DataError: they are not.
    """
    if isinstance(reader, RecordedReader):
        reader.require_whole(test_sets)
