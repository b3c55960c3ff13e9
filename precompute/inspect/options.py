"""What the commands ``clipocr cache show|align`` are asked for. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...shared.errors import UsageError
from ...shared.options import NEW_PATH, Options, device_option, option


@dataclass(frozen=True, kw_only=True)
class ShowOptions(Options):
    """What is on a contact sheet."""

    out: Path = option(type=NEW_PATH, help="PNG to write.")
    rows: int = option(12, minimum=1, help="Rows to draw.")
    view_count: int | None = option(
        None,
        minimum=1,
        default_text="all, up to 5",
        help="Views of each row, from the first on.",
    )
    array: str | None = option(
        None,
        default_text="the last",
        help="Image features to colour, such as block6.",
    )
    seed: int = option(0, minimum=0, help="Which rows.")


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
        help="Words to compare, chosen by chance; the figure shows the first 16 of them.",
    )
    quantity: str = option(
        "cosine",
        choices=("cosine", "probability"),
        help="What the figure shows; probability, CLIP's softmax, is that of the paper's figure 5.",
    )
    seed: int = option(0, minimum=0, help="Which words.")
    device: str = device_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix.lower() != ".png":
            raise UsageError(f"{self.out} is not a PNG; name it {self.out.with_suffix('.png')}")
