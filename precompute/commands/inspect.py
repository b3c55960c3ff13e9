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
    """Draw a contact sheet: rows by views, and what the teacher sees in each.

    Below each view are the first three principal components of the patch tokens of an array, as
    colours: patches of one colour are alike to the teacher. Rows are random; bad ones say why they
    are.

    \b
    Example:
      clipocr cache show mjst.cache --out sheet.png --array block6
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
    """Compare words' pictures with their labels, as CLIP does (figure 5 of the paper).

    Each picture is that of the cache's first view, each label is read once as characters, as
    CLIP-OCR does, and once as a word. The table beside the figure holds every pair.

    \b
    Example:
      clipocr cache align mjst.cache --out align.png
      clipocr cache align mjst.cache --out figure5.png --words 3 --quantity probability
    """
    from ..inspect.label_retrieval import retrieve_labels

    options = RetrievalOptions.from_values(given)
    retrievals, teacher = retrieve_labels(cache_path, options)
    rows = [
        (some.tokens, *(f"{n:.1f}" if "%" in name else f"{n:.4f}" for name, n in figures.items()))
        for some in retrievals
        if (figures := some.figures)
    ]
    click.echo(markdown_table(rows, ("tokens", *retrievals[0].figures)))
    warn_of_random_teacher(teacher.is_random, teacher.name)
    num_words = counted(len(retrievals[0].cosines), "word")
    click.echo(f"Wrote {options.out} and {options.table}: {num_words}.")
