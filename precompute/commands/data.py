"""The commands ``clipocr data ...``: make word LMDBs, and check them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...shared.options import FILE, FOLDER, NEW_PATH, jobs_option
from ...shared.terminal import MAX_LISTED, counted, folder_size, histogram, listed_problems

if TYPE_CHECKING:
    from ...shared.charset import Charset
    from ..data.check import LmdbReport


@click.group()
def data() -> None:
    """Make word LMDBs, and check them."""


@data.command("import")
@click.argument("source", metavar="SRC", type=FOLDER)
@click.argument("out", metavar="OUT.lmdb", type=NEW_PATH)
@click.option(
    "--labels",
    "label_file",
    type=FILE,
    show_default="found in SRC: gt.tsv, gt.txt, labels.tsv, labels.txt or labels.json",
    help="Label file: lines of 'file<TAB>label' or 'file label', or JSON {\"file\": \"label\"}.",
)
@click.option("--strict", is_flag=True, help="Write nothing if any entry cannot be used.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.lmdb if it exists.")
def import_command(
    source: Path, out: Path, label_file: Path | None, strict: bool, overwrite: bool
) -> None:
    """Pack the word images of the folder SRC and their labels into OUT.lmdb.

    Image bytes go in as they are. Entries that cannot be used are listed with their reason.

    \b
    Example:
      clipocr data import iiit5k_test iiit5k_test.lmdb --labels iiit5k_test/gt.tsv
    """
    from ..data.import_words import import_words

    with listed_problems() as on_problem:
        report = import_words(
            source,
            out,
            label_file=label_file,
            strict=strict,
            overwrite=overwrite,
            on_problem=on_problem,
        )
    click.echo(
        f"Wrote {out}: {counted(report.num_samples, 'sample')}, {folder_size(out)}; "
        f"{counted(report.num_rejected, 'entry', 'entries')} rejected, "
        f"{counted(report.num_unlabelled, 'image')} without a label."
    )


def _drawing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add how words are drawn, as `_render` takes it."""
    options = (
        click.option(
            "--style",
            type=click.Choice(["mjsynth", "color", "plain"]),
            default="mjsynth",
            show_default=True,
            help="Grey like MJSynth's crops, the same in colour, or clean dark print on light "
            "paper.",
        ),
        click.option(
            "--case",
            type=click.Choice(["mixed", "lower", "upper", "as-is"]),
            default="mixed",
            show_default=True,
            help="mixed: lower case, Capitalised or UPPER CASE by chance.",
        ),
        click.option(
            "--fonts",
            "fonts_folder",
            type=FOLDER,
            show_default="the text fonts that come with matplotlib",
            help="Folder with .ttf and .otf fonts, at any depth.",
        ),
        click.option(
            "--min-height-px", type=int, default=31, show_default=True, help="Lowest crop."
        ),
        click.option(
            "--max-height-px", type=int, default=31, show_default=True, help="Highest crop."
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Of all chance.",
        ),
        jobs_option,
        click.option("--overwrite", is_flag=True, help="Replace OUT.lmdb if it exists."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@data.command("render")
@click.argument("out", metavar="OUT.lmdb", type=NEW_PATH)
@click.option(
    "--words", "words_file", type=FILE, required=True, help="UTF-8 text file, one word a line."
)
@click.option(
    "--count", type=click.IntRange(1, 999_999_999), required=True, help="Samples to render."
)
@_drawing_options
def render_command(out: Path, words_file: Path, count: int, **drawing: Any) -> None:
    """Render synthetic word crops into OUT.lmdb.

    Each word is used about equally often. The same options give the same bytes, whatever --jobs.

    \b
    Example:
      clipocr data render train.lmdb --words words.txt --count 10000 --seed 1
    """
    from ..data.render import load_words

    words = load_words(words_file)
    num_fonts = _render(words, out, count, **drawing)
    click.echo(
        f"Wrote {out}: {counted(count, 'sample')} of {counted(len(words), 'word')} "
        f"in {counted(num_fonts, 'font')}, {folder_size(out)}."
    )


def _render(
    words: Sequence[str],
    out: Path,
    count: int,
    *,
    style: str,
    case: str,
    fonts_folder: Path | None,
    min_height_px: int,
    max_height_px: int,
    seed: int,
    jobs: int,
    overwrite: bool,
) -> int:
    """Render words as the options say; return how many fonts there were."""
    from ..data.render import RenderOptions, load_fonts, render_words

    options = RenderOptions(
        seed=seed,
        style=style,
        case=case,
        min_height_px=min_height_px,
        max_height_px=max_height_px,
    )
    fonts, unusable = load_fonts(fonts_folder)
    with listed_problems() as on_problem:
        for path, reason in unusable.items():
            on_problem(f"{path}: {reason}")
    render_words(
        words, out, count=count, fonts=fonts, options=options, jobs=jobs, overwrite=overwrite
    )
    return len(fonts)


@data.command("nonwords")
@click.argument("source", metavar="DATA", type=FOLDER)
@click.argument("out", metavar="OUT.lmdb", type=NEW_PATH)
@click.option(
    "--mode",
    type=click.Choice(["shuffle", "random"]),
    required=True,
    help="shuffle: a label's characters in random order; random: as many characters by chance.",
)
@click.option(
    "--count", type=click.IntRange(min=1), default=1000, show_default=True, help="Words to make."
)
@click.option(
    "--charset",
    "charset_name",
    default="36",
    show_default=True,
    help="36, 62, 94 or a text file; labels are reduced to it first.",
)
@click.option(
    "--max-label-length", type=int, default=25, show_default=True, help="Longest label drawn."
)
@click.option("--keep-unicode", is_flag=True, help="Do not reduce labels to ASCII.")
@_drawing_options
def nonwords_command(
    source: Path,
    out: Path,
    mode: str,
    count: int,
    charset_name: str,
    max_label_length: int,
    keep_unicode: bool,
    **drawing: Any,
) -> None:
    """Render words that language does not help with (table 13 of the paper) into OUT.lmdb.

    They are made of labels drawn by chance from the LMDBs at or below DATA, whose pictures are not
    used. The same options give the same bytes, whatever --jobs.

    \b
    Example:
      clipocr data nonwords data/test/IC15_1811 data/test/synth-shuffle --mode shuffle
      clipocr data nonwords data/test/IC15_1811 data/test/synth-random --mode random
    """
    from ...shared.charset import Charset, LabelRules
    from ..data.nonwords import make_nonwords, read_labels

    charset = Charset.load(charset_name)
    rules = LabelRules(normalize_unicode=not keep_unicode, max_label_length=max_label_length)
    labels = read_labels(source, charset, rules)
    words = make_nonwords(labels, mode=mode, count=count, charset=charset, seed=drawing["seed"])
    num_fonts = _render(words, out, count, **drawing)
    click.echo(
        f"Wrote {out}: {counted(count, 'sample')} ({mode}) of {counted(len(labels), 'label')} "
        f"in {counted(num_fonts, 'font')}, {folder_size(out)}."
    )


@data.command("check")
@click.argument("roots", metavar="PATH...", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--charset", "charset_name", default="36", show_default=True, help="36, 62, 94 or a text file."
)
@click.option(
    "--max-label-length", type=int, default=25, show_default=True, help="Longest label kept."
)
@click.option("--keep-unicode", is_flag=True, help="Do not reduce labels to ASCII.")
@jobs_option
def check_command(
    roots: tuple[Path, ...],
    charset_name: str,
    max_label_length: int,
    keep_unicode: bool,
    jobs: int,
) -> None:
    """Decode every image and filter every label of the LMDBs at or below PATH.

    Exits with 1 if anything is broken: an image or label that is missing or damaged, or an LMDB
    that cannot be used. Labels that a cache or the charset leaves out are counted, not broken.

    \b
    Example:
      clipocr data check train.lmdb iiit5k_test.lmdb --charset 36
    """
    from ...shared.charset import Charset, LabelRules
    from ..data.check import check_lmdbs

    charset = Charset.load(charset_name)
    rules = LabelRules(normalize_unicode=not keep_unicode, max_label_length=max_label_length)
    reports = check_lmdbs(roots, charset=charset, rules=rules, jobs=jobs)
    for report in reports:
        _print_check(report, charset)
    num_samples = sum(report.num_samples for report in reports)
    num_broken = sum(report.num_broken for report in reports)
    num_unusable = sum(report.problem is not None for report in reports)
    click.echo(
        f"Checked {counted(len(reports), 'LMDB')}, {counted(num_samples, 'sample')}: "
        f"{num_broken:,} broken, {counted(num_unusable, 'LMDB')} unusable."
    )
    if not all(report.is_sound for report in reports):
        raise SystemExit(1)


def _print_check(report: LmdbReport, charset: Charset) -> None:
    from tabulate import tabulate

    rows = [("samples", f"{report.num_samples:,}"), ("broken", f"{report.num_broken:,}")]
    rows += [(reason, f"{n:,}") for reason, n in sorted(report.label_problems.items())]
    if report.num_spaced:
        rows.append(("with whitespace", f"{report.num_spaced:,}, which is dropped"))
    if report.num_losing:
        rows.append(
            ("losing letters", f"{report.num_losing:,}, reduced to ASCII; or --keep-unicode")
        )
    rows.append(("label lengths", histogram(report.label_lengths)))
    outside = report.outside(charset).most_common()
    listed = "  ".join(
        f"{c if c.isprintable() else f'U+{ord(c):04X}'} {n:,}" for c, n in outside[:MAX_LISTED]
    )
    more = f"  and {len(outside) - MAX_LISTED} others" if len(outside) > MAX_LISTED else ""
    rows.append((f"outside charset {charset.name}", listed + more or "none"))
    click.echo(report.path)
    if report.problem is None:
        click.echo(tabulate(rows, tablefmt="plain", disable_numparse=True))
    else:
        click.echo(f"unusable: {report.problem}")
    for key, reason in report.broken:
        click.echo(f"{key}: {reason}")
    if report.num_extra:
        click.echo(
            f"Warning: {report.path} holds {counted(report.num_extra, 'key')} numbered beyond "
            f"num-samples ({report.num_samples:,}); nothing reads them",
            err=True,
        )
    click.echo()
