"""Reading test sets by PARSeq's protocol, with a trained recogniser or with anybody's function.

Label and text both pass through the test charset. A recogniser decodes all its positions, never
just as many as the label has. Every word that was read is kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...shared.charset import Charset
from ...shared.errors import UsageError
from ..models.recogniser import Recogniser
from ..reading.readers import PictureReader, Reader, WordReader, load_reader, reader_of
from .options import EvalOptions
from .results import Evaluation, SetResult
from .test_sets import TestSet, open_test_sets


def evaluate(
    reader: str | os.PathLike[str] | WordReader | Recogniser | PictureReader,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    charset: str | Charset = EvalOptions.charset,
    max_label_length: int | None = None,
    batch_size: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    name: str | None = None,
) -> Evaluation:
    """Measure word accuracy on every test set at or below some folders, as PARSeq does.

    Any model can be measured. A function from a list of pictures to a list of texts is enough::

        def read(pictures: list[PIL.Image.Image]) -> list[str]:
            return [my_model(picture) for picture in pictures]

        theirs = clipocr.evaluate(read, "data/test")
        ours = clipocr.evaluate("run", "data/test")
        print(theirs.table())
        print(ours.table(theirs))         # accuracies, differences, McNemar's test
        ours.report("report", theirs)     # both on one page

    A function is given RGB pictures as they were decoded, of any size and not stretched, at most
    `batch_size` of them. A picture that cannot be decoded counts as wrong and is not handed to it.
    It says nothing of probabilities, so tables show "-" for its confidence, and a report leaves out
    calibration and attention.

    Args:
        reader: A run folder or checkpoint; what `load` returned; or a function as above.
        data: Folder or folders with test sets at any depth: LMDBs, and image folders with a label
            file. Benchmarks are known by their folders' names and averaged in groups.
        charset: Test charset, which label and text pass through: ``36``, ``62``, ``94``, or a text
            file.
        max_label_length: Longest label that counts; None: the longest that a recogniser can
            write, 25 for a function.
        batch_size: Pictures at once; None: 512.
        precision: ``fp32``, ``bf16`` or ``fp16``, for a run that is loaded here; None: fp32.
        device: For a run that is loaded here; None: CUDA if there is one, else the CPU.
        name: What tables and reports call a function; None: its own name.

    Raises:
        CheckpointError: the run has no checkpoint, or it is damaged.
        DataError: no test set, or one that cannot be used.
        UsageError: the function returned something else than one text per picture, or `reader`
            is nothing that reads.
    """
    options = {"batch_size": batch_size, "precision": precision, "device": device, "name": name}
    given = {key: value for key, value in options.items() if value is not None}
    read_by = _as_reader(reader, given)
    roots = [data] if isinstance(data, str | os.PathLike) else data
    if not isinstance(charset, Charset):
        charset = Charset.load(charset)
    length = max_label_length or read_by.max_label_length
    return evaluate_sets(read_by, open_test_sets([Path(root) for root in roots], charset, length))


def evaluate_sets(reader: WordReader, test_sets: Sequence[TestSet]) -> Evaluation:
    """Read every picture of some test sets under one test charset, with bars on stderr."""
    results = []
    for test_set in test_sets:
        words = reader.words(test_set.pictures, test_set.load, test_set.charset.adapt)
        bar = tqdm(words, total=len(test_set.pictures), desc=test_set.name, unit="image")
        results.append(
            SetResult(name=test_set.name, words=tuple(bar), num_unlabelled=test_set.num_unlabelled)
        )
    return Evaluation(reader=reader, test_sets=test_sets, sets=tuple(results))


def _as_reader(reader: object, given: dict[str, Any]) -> WordReader:
    """Return what reads. `given` holds the arguments of `evaluate` on how, as far as they were."""

    def options(what: str, *takes: str) -> dict[str, Any]:
        if unfit := sorted(set(given) - set(takes)):
            raise UsageError(f"{', '.join(unfit)} cannot be given for {what}; leave it out")
        return {"batch_size": EvalOptions.batch_size, **given}

    if isinstance(reader, WordReader):
        options("a reader that is loaded already")
        return reader
    if isinstance(reader, str | os.PathLike):
        return load_reader(reader, **options("a run", "batch_size", "precision", "device"))
    if isinstance(reader, Recogniser):
        return Reader(reader, **options("a recogniser", "batch_size", "precision"))
    if callable(reader):
        return reader_of(reader, **options("a function", "batch_size", "name"))
    raise UsageError(
        f"reader is a {type(reader).__name__}; expected a run folder or checkpoint, what "
        "clipocr.load returned, or a function from a list of pictures to a list of texts"
    )
