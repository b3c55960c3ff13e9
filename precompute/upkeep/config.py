"""What `clipocr cache verify` and `clipocr cache copy` are asked for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...shared.errors import UsageError
from ...shared.options import FOLDER, Options, device_option, option


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Options):
    """What `clipocr cache verify` is asked for."""

    cache: str | Path
    """Folder or address."""
    repair: bool = option(
        False,
        help="Remove what is damaged. Repeat the cache build command to rebuild just that.",
    )
    recompute: int | None = option(
        None,
        metavar="N",
        minimum=1,
        default_text="none",
        help="Also build N random rows anew from the LMDBs, and compare.",
    )
    data: tuple[Path, ...] = option(
        (),
        metavar="ROOT",
        type=FOLDER,
        help="For --recompute: folder with the LMDBs that the cache was built from. May be given "
        "more than once.",
    )
    teacher: str | None = option(
        None,
        metavar="MODEL/WEIGHTS",
        default_text="as the cache names them",
        help="For --recompute: where the teacher's weights are now. Needed only if they came "
        "from a file.",
    )
    seed: int = option(0, help="For --recompute: seed of the choice of rows.")
    device: str = device_option()
    jobs: int | None = option(
        None, minimum=1, default_text="every core", help="Threads that read files."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repair and not isinstance(self.cache, Path):
            raise UsageError(f"{self.cache} can only be read; --repair needs a folder")
        if self.repair and self.recompute:
            raise UsageError("--repair removes damaged files, not rows; leave out --recompute")
        if (self.data or self.teacher) and not self.recompute:
            raise UsageError("--data and --teacher are for --recompute; pass --recompute N, too")
        if self.recompute and not self.data:
            raise UsageError("--recompute needs the LMDBs the cache was built from; pass --data")


@dataclass(frozen=True, kw_only=True)
class CopyConfig(Options):
    """What `clipocr cache copy` is asked for."""

    source: str | Path
    """Folder or address."""
    out: Path
    fraction: float = option(
        1.0,
        above=0,
        maximum=1,
        help="Share of the rows to copy, from the first row on, rounded up to whole units.",
    )
    views: int | None = option(
        None, minimum=1, default_text="all", help="Views to copy, from the first view on."
    )
