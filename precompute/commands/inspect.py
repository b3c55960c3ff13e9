"""The commands ``clipocr cache show|align``, which draw what is in a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...shared.options import CACHE, takes
from ...shared.terminal import counted, markdown_table, warn_of_random_teacher
from ..inspect.options import RetrievalOptions, ShowOptions


@click.command("show")
@click.argument("cache_path", metavar="CACHE", type=CACHE)
@takes(ShowOptions)
def show_command(cache_path: str | Path, given: dict[str, Any]) -> None:
    """Draw a contact sheet of a cache: its views and their features.

    Below each view, colours show the first three principal components of its patch tokens: patches
    of the same colour look alike to the teacher. Rows are random, unless --labels or --keys choose
    them. A bad row shows its reason.

    \b
    Example:
      clipocr cache show mjst.cache --out sheet.png --array block6
      clipocr cache show mjst.cache --out sheet.png --labels coffee,tea
    """
    from ..inspect.show import show_cache

    options = ShowOptions.from_values(given)
    summary = show_cache(cache_path, options)
    warn_of_random_teacher(summary.teacher.is_random, summary.teacher.name)
    width_px, height_px = summary.size_px
    click.echo(
        f"Wrote {options.out}: {counted(summary.num_rows, 'row')} by "
        f"{counted(summary.num_views, 'view')}, {summary.array}, {width_px}x{height_px} pixels."
    )


@click.command("align")
@click.argument("cache_path", metavar="CACHE", type=CACHE)
@takes(RetrievalOptions)
def align_command(cache_path: str | Path, given: dict[str, Any]) -> None:
    """Test how well CLIP matches pictures to labels (CLIP-OCR's figure 5).

    Pictures are those of the cache's first view. CLIP reads each label twice: spelled in
    characters, as CLIP-OCR does, and as a whole word. The printed row "chance" is what guessing
    would score. The CSV beside the figure holds every pair.

    \b
    Example:
      clipocr cache align mjst.cache --out align.png
      clipocr cache align mjst.cache --out figure5.png --words 3 --quantity probability
      clipocr cache align mjst.cache --out mine.png --labels coffee,tea,cocoa
    """
    from ..inspect.label_retrieval import retrieve_labels

    options = RetrievalOptions.from_values(given)
    retrievals, teacher = retrieve_labels(cache_path, options)
    names = list(retrievals[0].figures)
    shown = {some.tokens: some.figures for some in retrievals} | {"chance": retrievals[0].chance}
    rows = [
        (of, *(f"{figures[n]:.{1 if '%' in n else 4}f}" if n in figures else "" for n in names))
        for of, figures in shown.items()
    ]
    click.echo(markdown_table(rows, ("tokens", *names)))
    warn_of_random_teacher(teacher.is_random, teacher.name)
    num_words = counted(len(retrievals[0].cosines), "word")
    click.echo(f"Wrote {options.out} and {options.table}: {num_words}.")
