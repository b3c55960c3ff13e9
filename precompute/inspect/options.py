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
    option_of,
)
from ..builder.config import SourceOptions, TextConfig


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
        default_text="where temporary files go",
        help="Folder where the cache would go, to measure the speed of its disk.",
    )
    charsets: tuple[Charset, ...] = option(
        (Charset.load("36"),),
        name="charset",
        parse=Charset.load,
        unparse=lambda charset: charset.name,
        metavar="CHARSET,...",
        help=f"Charsets to plan text features for: {CHARSET_HELP}.",
    )
    views: tuple[int, ...] = option(
        (1, 2, 5),
        minimum=1,
        help="Numbers of views to plan for. More than one means --augment randaugment.",
    )
    fidelity: float = option(
        0.99,
        above=0,
        below=1,
        help="Median centred cosine, of stored to original features, that an advised codec keeps. "
        "It also sets bounds for the worst tokens and for LCL's Gram matrix.",
    )
    plot: Path | None = option(
        None,
        type=NEW_PATH,
        default_text="none",
        help="PNG to write, with the bytes and the fidelity of each codec.",
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
        help="Take words with these labels, in upper or lower case.",
    )
    keys: tuple[str, ...] = option(
        (),
        metavar="SOURCE/KEY,...",
        default_text="any",
        help="Take these samples, such as MJ/train/image-000000042.",
    )
    seed: int = option(0, minimum=0, help="Seed of the choice of rows.")


@dataclass(frozen=True, kw_only=True)
class ShowOptions(Options):
    """What is on a contact sheet."""

    out: Path = option(type=NEW_PATH, help="PNG to write.")
    rows: int = option(
        12,
        minimum=1,
        help="Rows to draw, each in up to 5 views. --labels and --keys share them equally, with at "
        "least one each.",
    )
    array: str | None = option(
        None,
        default_text="the last",
        help="Image features to show as colours, such as block6.",
    )
    choice: RowChoice = field(default_factory=RowChoice)


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(Options):
    """Which words are compared with which labels, and what is drawn of it."""

    out: Path = option(type=NEW_PATH, help="PNG to write. A CSV goes beside it.")
    teacher: str | None = option_of(TextConfig, "teacher")
    words: int = option(
        200,
        minimum=2,
        maximum=1000,
        help="Words to compare, at most. The figure shows the first 16.",
    )
    quantity: str = option(
        "cosine",
        choices=("cosine", "probability"),
        help="What the figure shows. probability is CLIP's softmax, as in the paper's figure 5.",
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
