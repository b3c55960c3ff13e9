"""Options of the commands on test sets. Imports nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ...shared.charset import CHARSET_HELP, Charset
from ...shared.errors import UsageError
from ...shared.options import FILE, FOLDER, json_option, option
from ..reading.options import ArithmeticOptions, clip_option
from .tables import FORMATS

TEST_SETS_HELP = (
    "Folder with test sets, at any depth: LMDBs, and folders of pictures with a label file. May be "
    "given more than once."
)


@dataclass(frozen=True, kw_only=True)
class TestSetOptions(ArithmeticOptions):
    """What commands on test sets have."""

    data: tuple[Path, ...] = option(
        help=TEST_SETS_HELP,
        metavar="ROOT",
        type=FOLDER,
    )
    json: bool = json_option()
    format: str = option(
        "markdown",
        help="Format of the tables. With csv and latex, everything else goes to stderr.",
        choices=FORMATS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.json and self.format != "markdown":
            raise UsageError(f"--json prints no tables; leave it or --format {self.format} out")

    @property
    def prints_figures_alone(self) -> bool:
        """Whether stdout is for a program: nothing but the figures."""
        return self.json or self.format != "markdown"


@dataclass(frozen=True, kw_only=True)
class EvalOptions(TestSetOptions):
    """Of ``clipocr eval``."""

    charsets: tuple[Charset, ...] = option(
        (Charset.load("36"),),
        name="charset",
        parse=Charset.load,
        unparse=lambda charset: charset.name,
        metavar="CHARSET,...",
        help="Test charsets, to which labels and predictions are reduced before they are compared: "
        f"{CHARSET_HELP}. Published figures use 36.",
    )
    predictions: tuple[Path, ...] = option(
        (),
        metavar="FILE",
        type=FILE,
        help="File of what another model read: a .jsonl written by eval, or lines of "
        "set<TAB>image<TAB>text. May be given more than once.",
    )
    batch_size: int = option(512, help="Pictures to read at once.", minimum=1)
    clip: tuple[str, ...] = option(
        (),
        metavar="MODEL/WEIGHTS|CACHE,...",
        default_text="as the runs name them",
        help="Where CLIP's weights are, for recognisers that contain CLIP but were saved without "
        "its weights: one place for all RUNs, or one for each.",
    )
    out: Path | None = option(
        None,
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        default_text="the run's folder, or that of the predictions",
        help="Folder to write NAME.eval.json (the figures) and NAME.eval.predictions.jsonl (what "
        "was read in each picture) to.",
    )
    report: Path | None = option(
        None,
        help="Also write DIR/index.html, a page to open in a browser: tables, accuracy by length "
        "and by character, confusions, calibration, errors with their pictures, and the decoder's "
        "attention.",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [charset.name for charset in self.charsets]
        if not names or len(set(names)) < len(names):
            raise UsageError(
                f"charsets are {', '.join(names) or 'none'}; expected one or more, of different "
                "names, after which files are called"
            )


@dataclass(frozen=True, kw_only=True)
class LatencyOptions(TestSetOptions):
    """Of ``clipocr latency``."""

    images: int = option(200, help="Pictures to time, taken evenly from all test sets.", minimum=1)
    batch_sizes: tuple[int, ...] = option((1, 64), help="Batch sizes to time.", minimum=1)
    clip: str | None = clip_option()
