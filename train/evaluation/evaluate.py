"""Reading test sets by PARSeq's protocol, with a trained recogniser or with anybody's function.

Label and text both pass through the test charset. A recogniser decodes all its positions, never
just as many as the label has. Every word that was read is kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...shared.charset import Charset
from ...shared.errors import UsageError
from ...shared.progress import progress_bar
from ..reading.readers import FunctionReader, PictureBatchReader, PictureReader, load_reader
from .options import EvalOptions
from .results import Evaluation, SetResult
from .test_sets import TestSet, open_test_sets


def evaluate(
    reader: str | os.PathLike[str] | PictureBatchReader | PictureReader,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    charset: str = EvalOptions.charset,
    batch_size: int = EvalOptions.batch_size,
    name: str | None = None,
) -> Evaluation:
    """Measure word accuracy on every test set at or below some folders, as PARSeq does.

    Any model can be measured: a function from a list of pictures to a list of texts is enough. It
    is given RGB pictures as they were decoded, of any size and not stretched. A picture that cannot
    be decoded counts as wrong and is not handed to it. It says nothing of probabilities, so tables
    show "-" for its confidence, and a report leaves out calibration and attention.

    Args:
        reader: A run folder or checkpoint; what `load` returned, which also takes device and
            precision; or a function as above.
        data: Folder or folders with test sets at any depth: LMDBs, and image folders with a label
            file. Benchmarks are known by their folders' names and averaged in groups.
        charset: Test charset, which label and text pass through: ``36``, ``62``, ``94``, or a text
            file.
        batch_size: Pictures at once, of a run or a function; what `load` returned has its own.
        name: What tables and reports call a function; None: its own name.

    Raises:
        CheckpointError: the run has no checkpoint, or it is damaged.
        DataError: no test set, or one that cannot be used.
        UsageError: the function returned something else than one text per picture, or `reader`
            is nothing that reads.
    """
    if isinstance(reader, str | os.PathLike):
        reader = load_reader(reader, batch_size=batch_size)
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
    results = []
    for test_set in test_sets:
        words = reader.words(test_set.pictures, test_set.load, test_set.charset.adapt)
        bar = progress_bar(words, total=len(test_set.pictures), desc=test_set.name, unit="image")
        results.append(SetResult(test_set=test_set, words=tuple(bar)))
    return Evaluation(reader=reader, sets=tuple(results))
