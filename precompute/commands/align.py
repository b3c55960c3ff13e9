"""The command ``clipocr cache align``."""

from __future__ import annotations

from pathlib import Path

import click

from ...shared.options import CACHE, NEW_PATH, device_option
from ...shared.terminal import counted, warn_of_random_teacher


@click.command("align")
@click.argument("source", metavar="CACHE|DATA", type=CACHE)
@click.option("--out", type=NEW_PATH, required=True, help="PNG to write; a CSV goes beside it.")
@click.option(
    "--teacher",
    metavar="MODEL/WEIGHTS",
    show_default="the cache's own; ViT-B-16/openai for DATA",
    help="As for cache build; of a cache the weights it was built with.",
)
@click.option(
    "--words",
    "num_words",
    type=click.IntRange(2, 1000),
    default=200,
    show_default=True,
    help="Words to compare, drawn by chance; the figure shows the first 16 of them.",
)
@click.option(
    "--quantity",
    type=click.Choice(["cosine", "probability"]),
    default="cosine",
    show_default=True,
    help="What the figure shows; probability, CLIP's softmax, is that of the paper's figure 5.",
)
@click.option(
    "--keep-unicode", is_flag=True, help="For DATA: do not reduce labels to ASCII; non-Latin."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which words.")
@device_option
def align_command(
    source: str | Path,
    out: Path,
    teacher: str | None,
    num_words: int,
    quantity: str,
    keep_unicode: bool,
    seed: int,
    device_name: str,
) -> None:
    """Compare words' pictures with their labels, as CLIP does (figure 5 of the paper).

    Each picture is seen at 32x128, each label read once as characters, as CLIP-OCR does, and once
    as a word. CACHE is a cache, whose first view is taken; DATA a folder with LMDBs at any depth.
    The table beside the figure holds every pair.

    \b
    Example:
      clipocr cache align data/test --out align.png
      clipocr cache align mjst.cache --out figure5.png --words 3 --quantity probability
    """
    from tabulate import tabulate

    from ...shared.device import choose_device
    from ..inspect.align import AlignConfig, align_words

    summary = align_words(
        AlignConfig(
            source=source,
            out=out,
            teacher=teacher,
            num_words=num_words,
            quantity=quantity,
            keep_unicode=keep_unicode,
            seed=seed,
            device=choose_device(device_name),
        )
    )
    rows = [
        (
            alignment.tokens,
            f"{alignment.mean_own:.4f}",
            f"{alignment.mean_other:.4f}",
            f"{100 * alignment.label_top1:.1f}",
            f"{100 * alignment.picture_top1:.1f}",
            f"{alignment.mean_probability:.4f}",
        )
        for alignment in summary.alignments
    ]
    headers = (
        "own label",
        "other labels",
        "picture to label %",
        "label to picture %",
        "own probability",
    )
    click.echo(
        tabulate(
            rows,
            headers=["tokens", *headers],
            tablefmt="github",
            colalign=("left", *["right"] * len(headers)),
            disable_numparse=True,
        )
    )
    warn_of_random_teacher(summary.teacher_is_random, summary.teacher_name)
    if summary.undrawable:
        click.echo(
            f"Note: no font on this machine draws {summary.undrawable}; squares stand for them. "
            "Install one (such as Noto Sans of that script) and run this again.",
            err=True,
        )
    click.echo(
        f"Wrote {out} and {summary.table}: {counted(summary.num_words, 'word')}, "
        f"{summary.num_drawn} of them drawn."
    )
