"""Options of the commands that read pictures. Imports nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from ...shared.options import Options, device_option, option


@dataclass(frozen=True, kw_only=True)
class ArithmeticOptions(Options):
    """What every command that reads has."""

    precision: str = option(
        "fp32",
        help="Number format to compute in. Published figures are in fp32.",
        choices=("fp32", "bf16", "fp16"),
    )
    device: str = device_option()


def clip_option() -> str | None:
    """Declare a field of an `Options` class as the option ``--clip``."""
    place: str | None = option(
        None,
        metavar="MODEL/WEIGHTS|CACHE",
        default_text="as the run names them",
        help="Where CLIP's weights are, for a recogniser that contains CLIP but was saved without "
        "its weights.",
    )
    return place


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(ArithmeticOptions):
    """Of ``clipocr read``."""

    format: str = option(
        "tsv",
        help="What to print for each picture: file, text and confidence (tsv), the text alone "
        "(text), or a JSON object with the probability of each character (jsonl).",
        choices=("tsv", "text", "jsonl"),
    )
    batch_size: int = option(64, help="Pictures to read at once.", minimum=1)
    clip: str | None = clip_option()
