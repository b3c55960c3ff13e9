"""What the commands ``clipocr data ...`` are asked for. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ...shared.charset import CHARSET_HELP, Charset, LabelRules, charset_option
from ...shared.data.label_formats import FORMATS, LABEL_FILES
from ...shared.errors import UsageError
from ...shared.options import FILE, FOLDER, NEW_PATH, Options, num_cores, option


@dataclass(frozen=True, kw_only=True)
class _Jobs(Options):
    jobs: int | None = option(
        None, minimum=1, default_text="every core", help="Processes to work with."
    )

    @property
    def num_processes(self) -> int:
        """Processes to work with."""
        return self.jobs or num_cores()


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """How word images become an LMDB."""

    labels: Path | None = option(
        None,
        type=NEW_PATH,
        metavar="FILE",
        default_text=f"found in SRC: {LABEL_FILES}",
        help="Label file, here or in SRC.",
    )
    format: str | None = option(
        None,
        choices=tuple(FORMATS),
        default_text="whatever fits",
        help=f"{'; '.join(f'{name}: {what}' for name, what in FORMATS.items())}. names, and "
        "mjsynth without --labels, take the labels from the images' names.",
    )
    overwrite: bool = option(False, help="Replace OUT.lmdb if it exists.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None and self.format == "names":
            raise UsageError("--format names reads no label file; pass no --labels")


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(_Jobs):
    """How words are drawn, the same for every sample of an LMDB."""

    style: str = option(
        "mjsynth",
        choices=("mjsynth", "color", "plain", "scene"),
        help="Grey like MJSynth's crops, the same in colour, clean dark print on light paper, or "
        "signs as cameras see them.",
    )
    case: str = option(
        "mixed",
        choices=("mixed", "lower", "upper", "as-is"),
        help="mixed: lower case, Capitalised and UPPER CASE equally often, as in MJSynth.",
    )
    fonts: Path | None = option(
        None,
        type=FOLDER,
        default_text="the text fonts that come with matplotlib; of scene those installed here too",
        help="Folder with .ttf and .otf fonts, at any depth. Other fonts give other bytes.",
    )
    backgrounds: Path | None = option(
        None,
        type=FOLDER,
        default_text="painted",
        help="Folder with pictures, at any depth, of which parts lie behind the words of "
        "--style scene.",
    )
    max_height_px: int | None = option(
        None,
        minimum=31,
        maximum=128,
        default_text="31; of scene 80",
        help="Highest crop; the lowest are 31 high, as MJSynth's are, and of scene 16.",
    )
    seed: int = option(0, minimum=0, help="Seed of every random choice.")
    overwrite: bool = option(False, help="Replace OUT.lmdb if it exists.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backgrounds is not None and self.style != "scene":
            raise UsageError(
                f"style {self.style} draws no pictures behind words; pass --style scene with "
                "--backgrounds"
            )


@dataclass(frozen=True, kw_only=True)
class RenderOptions(Options):
    """What `clipocr data render` is asked for."""

    words: Path = option(type=FILE, help="UTF-8 text file, one word a line.")
    count: int = option(minimum=1, maximum=999_999_999, help="Samples to render.")
    drawing: DrawingOptions


@dataclass(frozen=True, kw_only=True)
class NonwordOptions(Options):
    """What `clipocr data nonwords` is asked for."""

    mode: str = option(
        choices=("shuffle", "random"),
        help="shuffle: a label's characters in random order; random: as many characters by chance.",
    )
    count: int = option(1000, minimum=1, help="Words to make.")
    charset: Charset = charset_option(f"{CHARSET_HELP}; labels are reduced to it first.")
    labels: LabelRules
    drawing: DrawingOptions


@dataclass(frozen=True, kw_only=True)
class CheckOptions(_Jobs):
    """What `clipocr data check` is asked for."""

    charset: Charset = charset_option(f"{CHARSET_HELP}.")
    labels: LabelRules = LabelRules()


def _parse_key(text: str) -> int:
    number = text.removeprefix("image-").removeprefix("label-")
    if not (number.isascii() and number.isdigit()):
        raise UsageError(f"key {text!r}: expected a number, or a key such as image-000000017")
    return int(number)


@dataclass(frozen=True, kw_only=True)
class ShowWordsOptions(Options):
    """Which words are drawn on a contact sheet."""

    out: Path = option(type=NEW_PATH, help="PNG to write.")
    words: int = option(48, minimum=1, maximum=600, help="Most words to draw.")
    order: str = option(
        "random",
        choices=("random", "first", "smallest"),
        help="smallest: fewest pixels first, and before them what is no picture.",
    )
    label: str | None = option(
        None, default_text="any", help="Text that labels hold, upper case or lower."
    )
    exact: bool = option(False, help="Labels are --label, upper case and lower as written.")
    keys: tuple[int, ...] = option(
        (),
        minimum=1,
        type=click.STRING,
        parse=_parse_key,
        metavar="KEY,...",
        help="Samples in this order: numbers, or keys such as image-000000017.",
    )
    seed: int = option(0, minimum=0, help="Which random ones.")
    font: Path | None = option(
        None,
        type=FILE,
        default_text="DejaVu Sans, which has no Chinese, Japanese or Korean",
        help="Font of the labels.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keys and self.label is not None:
            raise UsageError("--keys and --label both say which words; pass one of them")
        if self.exact and self.label is None:
            raise UsageError("--exact says how --label is compared; pass --label TEXT with it")

    def matches(self, label: str) -> bool:
        """Whether a label is as asked for."""
        assert self.label is not None
        return label == self.label if self.exact else self.label.lower() in label.lower()
