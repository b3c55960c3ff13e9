"""What `clipocr cache plan` is asked for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...shared.charset import CHARSET_HELP, Charset
from ...shared.options import NEW_CACHE, num_cores, option
from ..builder.config import SourceOptions


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
        None, default_text="none", help="PNG of what each codec takes and keeps."
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
