"""Reading test sets by PARSeq's protocol, with a trained recogniser or with anybody's function.

Label and text both pass through the test charset. A recogniser decodes all its positions, never
just as many as the label has. Every word that was read is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...shared.charset import Charset
from ...shared.data.images import decode_image
from ...shared.errors import UsageError
from ...shared.terminal import counted
from ..models.recogniser import Recogniser
from ..reading.readers import CallableReader, PictureReader, Reader, WordReader, load_reader
from ..reading.words import ReadWord
from .metrics import Figures, WordCounts
from .options import EvalOptions
from .paired import compare, comparison_as_table
from .results import (
    Mean,
    SetResult,
    means_of,
    remarks_on,
    results_as_json,
    results_as_table,
)
from .test_sets import TestSet, open_test_sets

MAX_LABEL_LENGTH = 25
"""Longer labels do not count, as in PARSeq's protocol; a recogniser has a limit of its own."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one reader read of some test sets, and the figures that come of it."""

    reader: WordReader
    test_sets: Sequence[TestSet]
    sets: tuple[SetResult, ...]
    """Of `test_sets`, in their order: name, words, and counts with their ``figures``."""

    @property
    def charset(self) -> Charset:
        """The test charset."""
        return self.test_sets[0].charset

    @cached_property
    def words(self) -> list[ReadWord]:
        """Every word of every set."""
        return [word for result in self.sets for word in result.words]

    @property
    def counts(self) -> WordCounts:
        """Sums over all words."""
        return sum((result.counts for result in self.sets), WordCounts())

    @property
    def figures(self) -> dict[str, Figures]:
        """By the name of the set."""
        return {result.name: result.counts.figures for result in self.sets}

    @property
    def means(self) -> dict[str, Mean]:
        """Of each group of benchmarks that is complete, by its title; ``total`` is of all sets."""
        return means_of(self.sets)

    @property
    def remarks(self) -> list[str]:
        """What whoever looks at the figures must know."""
        return [*self._missing_characters(), *remarks_on(self.sets, self.charset)]

    def table(self, *others: Evaluation) -> str:
        """Return the figures as Markdown, or those of several evaluations side by side.

        With `others` come differences in accuracy and McNemar's exact test of each against this.

        Raises:
            UsageError: the others are not of the same test sets.
        """
        if others:
            return str(comparison_as_table(compare([each.sets for each in (self, *others)])))
        return str(results_as_table(self.sets))

    def report(self, folder: str | os.PathLike[str], *others: Evaluation) -> Path:
        """Write a page about this evaluation, or several side by side; return where it is.

        Args:
            folder: Gets ``index.html``; made if it is not there.
            others: Of the same test sets under the same charset.

        Raises:
            ImageProblemError: a picture is not there any more.
            UsageError: the others are not of the same test sets.
        """
        from ..report.page import write_report

        return write_report(Path(folder), [self, *others])

    def to_json(self) -> dict[str, Any]:
        """Return all figures, not rounded, as ``eval.json`` has them."""
        checkpoint = self.reader.checkpoint if isinstance(self.reader, Reader) else None
        of = {"checkpoint": str(checkpoint)} if checkpoint else {"reader": self.reader.name}
        return {**of, **results_as_json(self.sets, self.charset), "remarks": self.remarks}

    def _missing_characters(self) -> Iterator[str]:
        """Yield a remark if the recogniser cannot write all that the test charset has."""
        if not isinstance(self.reader, Reader):
            return
        own, charset = self.reader.recogniser.tokenizer.charset, self.charset
        # What it writes passes through the test charset, which may fold its case.
        writable = {c for character in own.characters for c in charset.adapt(character)}
        missing = [c for c in charset.characters if c not in writable]
        if missing:
            yield (
                f"{self.reader.name} was trained on charset {own.name} and cannot write "
                f"{counted(len(missing), 'character')} of test charset {charset.name} "
                f"({''.join(missing[:8])}{'...' if len(missing) > 8 else ''}); words with them "
                "count as wrong, unless another test charset is chosen"
            )


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
    length = max_label_length or longest_label(read_by)
    return evaluate_sets(read_by, open_test_sets([Path(root) for root in roots], charset, length))


def evaluate_sets(reader: WordReader, test_sets: Sequence[TestSet]) -> Evaluation:
    """Read every picture of some test sets under one test charset, with bars on stderr."""
    results = tuple(_read_set(reader, test_set) for test_set in test_sets)
    return Evaluation(reader=reader, test_sets=test_sets, sets=results)


def longest_label(reader: WordReader) -> int:
    """Return how many characters a label may have that counts for a reader."""
    if isinstance(reader, Reader):
        return reader.recogniser.tokenizer.max_label_length
    return MAX_LABEL_LENGTH


def _read_set(reader: WordReader, test_set: TestSet) -> SetResult:
    words = reader.words(
        test_set.pictures,
        lambda picture: decode_image(test_set.image(picture.image)),
        test_set.charset.adapt,
    )
    bar = tqdm(words, total=len(test_set.pictures), desc=test_set.name, unit="image")
    return SetResult(name=test_set.name, words=tuple(bar), num_unlabelled=test_set.num_unlabelled)


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
        return CallableReader(reader, **options("a function", "batch_size", "name"))
    raise UsageError(
        f"reader is a {type(reader).__name__}; expected a run folder or checkpoint, what "
        "clipocr.load returned, or a function from a list of pictures to a list of texts"
    )
