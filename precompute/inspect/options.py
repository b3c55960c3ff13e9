"""What the commands ``clipocr cache info|plan|show|align`` are asked for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...shared.charset import CHARSET_HELP, Charset
from ...shared.errors import UsageError
from ...shared.options import (
    NEW_CACHE,
    NEW_PATH,
    Options,
    device_option,
    json_option,
    num_cores,
    option,
)
from ..builder.config import SourceOptions


@dataclass(frozen=True, kw_only=True)
class InfoOptions(Options):
    """How a cache is described."""

    json: bool = json_option()


@dataclass(frozen=True, kw_only=True)
class PlanConfig(SourceOptions):
    """What a build would be asked for, and for which of its choices to add up the cost."""

    out: Path | None = option(
        None,
        type=NEW_CACHE,
        default_text="the disk of temporary files",
        help="Folder of the cache to be; only its disk is measured.",
    )
    charsets: tuple[Charset, ...] = option(
        (Charset.load("36"),),
        name="charset",
        parse=Charset.load,
        unparse=lambda charset: charset.name,
        metavar="CHARSET,...",
        help=f"Charsets, each of a text table: {CHARSET_HELP}.",
    )
    views: tuple[int, ...] = option(
        (1, 2, 5),
        minimum=1,
        help="Numbers of views to plan for; several views are always randaugment.",
    )
    fidelity: float = option(
        0.99,
        above=0,
        below=1,
        help="Median centred cosine that the advised codecs keep; bounds for the worst tokens and "
        "for LCL's Gram matrix follow from it.",
    )
    plot: Path | None = option(
        None,
        type=NEW_PATH,
        default_text="none",
        help="PNG to draw, of what each codec takes and loses.",
    )
    num_cores: int = field(default_factory=num_cores)
    """Cores that a teacher on the CPU shares with the decoding of images."""

    def augment_of(self, num_views: int) -> str:
        """Return how that many views would be made; several clean ones would all be the same."""
        return self.augment if num_views == 1 else "randaugment"

    @property
    def disk(self) -> Path | None:
        """An existing folder on the disk that the cache would be on."""
        if self.out is None:
            return None
        out = self.out.absolute()
        return next(folder for folder in (out, *out.parents) if folder.is_dir())


@dataclass(frozen=True, kw_only=True)
class RowChoice(Options):
    """Which rows of a cache are looked at: random ones, unless labels or keys are given."""

    labels: tuple[str, ...] = option(
        (),
        metavar="LABEL,...",
        default_text="any",
        help="Words with these labels, whatever their case.",
    )
    keys: tuple[str, ...] = option(
        (),
        metavar="SOURCE/KEY,...",
        default_text="any",
        help="These samples, such as MJ/train/image-000000042.",
    )
    seed: int = option(0, minimum=0, help="Which rows, where more would do.")


@dataclass(frozen=True, kw_only=True)
class ShowOptions(Options):
    """What is on a contact sheet."""

    out: Path = option(type=NEW_PATH, help="PNG to write.")
    rows: int = option(
        12,
        minimum=1,
        help="Rows to draw, each in up to 5 views; labels and keys share them, and have at least "
        "one each.",
    )
    array: str | None = option(
        None,
        default_text="the last",
        help="Image features to colour, such as block6.",
    )
    choice: RowChoice = field(default_factory=RowChoice)


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(Options):
    """Which words are compared with which labels, and what is drawn of it."""

    out: Path = option(type=NEW_PATH, help="PNG to write; a CSV goes beside it.")
    teacher: str | None = option(
        None,
        metavar="MODEL/WEIGHTS",
        default_text="the cache's own",
        help="Where its weights are now; needed if they were a file.",
    )
    words: int = option(
        200,
        minimum=2,
        maximum=1000,
        help="Words to compare, at most; the figure shows the first 16 of them.",
    )
    quantity: str = option(
        "cosine",
        choices=("cosine", "probability"),
        help="What the figure shows; probability, CLIP's softmax, is that of the paper's figure 5.",
    )
    choice: RowChoice = field(default_factory=RowChoice)
    device: str = device_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix.lower() != ".png":
            raise UsageError(f"{self.out} is not a PNG; name it {self.out.with_suffix('.png')}")

    @property
    def table(self) -> Path:
        """The CSV beside the figure."""
        return self.out.with_suffix(".csv")
