"""Options of the commands on test sets. Imports nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ...shared.options import FOLDER, NEW_PATH, option
from ..reading.options import ArithmeticOptions


@dataclass(frozen=True, kw_only=True)
class TestSetOptions(ArithmeticOptions):
    """What commands on test sets have."""

    data: tuple[Path, ...] = option(
        help="Folder with test sets at any depth: LMDBs, and image folders with a label file.",
        metavar="ROOT",
        type=FOLDER,
    )


@dataclass(frozen=True, kw_only=True)
class EvalOptions(TestSetOptions):
    """Of ``clipocr eval``."""

    charset: str = option(
        "36",
        help="Test charset, applied to label and prediction: 36 for the published numbers, 62, 94, "
        "or a text file.",
    )
    batch_size: int = option(512, help="Pictures at once.", minimum=1)
    json: Path | None = option(
        None,
        help="Where the figures of one RUN are written; what was read in each picture goes to a "
        ".predictions.jsonl beside them.",
        default_text="eval.json in the run's folder",
        type=NEW_PATH,
    )
    report: Path | None = option(
        None,
        help="Also write DIR/index.html, one page that opens from disk: tables, accuracy by length "
        "and character, confusions, calibration, errors with their pictures, the decoder's "
        "attention.",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
    )


@dataclass(frozen=True, kw_only=True)
class LatencyOptions(TestSetOptions):
    """Of ``clipocr latency``."""

    images: int = option(200, help="Pictures to read, taken evenly from all test sets.", minimum=1)
    batch_sizes: tuple[int, ...] = option((1, 64), help="Pictures at once.", minimum=1)
