"""What commands print: counts, sizes, times, notes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import click

MAX_LISTED = 20

_GOES_ON = "clipocr.goes_on"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def goes_on(command: _Command) -> _Command:
    """Say of a command that is interrupted that it goes on when it is run again."""

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        click.get_current_context().meta[_GOES_ON] = "The same command goes on where it stopped."
        return command(*args, **kwargs)

    return cast(_Command, call)


def how_to_go_on(context: click.Context) -> str:
    """Return what `goes_on` has a command say, or nothing."""
    return str(context.meta.get(_GOES_ON, ""))


@contextmanager
def listed_problems() -> Iterator[Callable[[str], None]]:
    """Collect problems and print them to stderr at the end, the first few and a count."""
    problems: list[str] = []
    try:
        yield problems.append
    finally:
        for problem in problems[:MAX_LISTED]:
            click.echo(problem, err=True)
        if len(problems) > MAX_LISTED:
            click.echo(f"... and {len(problems) - MAX_LISTED:,} more", err=True)


def histogram(lengths: dict[int, int], width: int = 5) -> str:
    """Return counts in bins of `width`, e.g. ``1-5: 1,203  6-10: 796``."""
    bins: dict[int, int] = {}
    for length, n in sorted(lengths.items()):
        start = (length - 1) // width * width + 1
        bins[start] = bins.get(start, 0) + n
    return "  ".join(f"{start}-{start + width - 1}: {n:,}" for start, n in bins.items()) or "none"


def counted(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: ``1 row``, ``2,000 rows``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def folder_size(folder: Path) -> str:
    """Return what the files right in a folder weigh together."""
    return byte_size(sum(path.stat().st_size for path in folder.iterdir()))


def duration(seconds: float) -> str:
    """Return a time as people say it, to the minute, or to the second if it is short."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def byte_size(num_bytes: float) -> str:
    """Return a size in the decimal unit that leaves one to three digits before the point."""
    size, units = float(num_bytes), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000:
        size, unit = size / 1000, next(units)
    return counted(round(size), "byte") if unit == "bytes" else f"{size:,.1f} {unit}"


def markdown_table(rows: Sequence[Sequence[str]], headers: Sequence[str], num_left: int = 1) -> str:
    """Return a table of texts, the first columns aligned to the left, the others to the right."""
    from tabulate import tabulate

    align = ["left"] * num_left + ["right"] * (len(headers) - num_left)
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def plain_table(rows: Sequence[tuple[str, str]]) -> str:
    """Return names and what is said of them."""
    from tabulate import tabulate

    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def warn_of_random_teacher(is_random: bool, name: str) -> None:
    """Say on stderr that such features teach nothing of CLIP."""
    if is_random:
        click.echo(
            f"Note: the teacher {name} has random weights. Its features try out the pipeline; "
            "a student learns nothing of CLIP from them.",
            err=True,
        )
