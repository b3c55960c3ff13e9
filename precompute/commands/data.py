"""The commands ``clipocr data ...``: make word LMDBs, check them, and show what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...shared.charset import counted_characters
from ...shared.help import Group
from ...shared.options import FOLDER, NEW_PATH, PATH, takes
from ...shared.terminal import (
    counted,
    folder_size,
    histogram,
    listed_problems,
    plain_table,
)
from ..data.options import (
    CheckOptions,
    DrawingOptions,
    ImportOptions,
    NonwordOptions,
    RenderOptions,
    ShowWordsOptions,
)

if TYPE_CHECKING:
    from ...shared.charset import Charset
    from ..data.check import LmdbReport


@click.group(cls=Group)
def data() -> None:
    """Make, check and show LMDBs of word images."""


@data.command("import")
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("out", metavar="OUT.lmdb", type=NEW_PATH)
@takes(ImportOptions)
def import_command(source: Path, out: Path, given: dict[str, Any]) -> None:
    """Pack word images and their labels into OUT.lmdb.

    SRC is a folder, a zip or a tar. Image files are stored unchanged. Entries that cannot be used
    are listed with the reason.

    \b
    Example:
      clipocr data import iiit5k_test.zip iiit5k_test.lmdb
      clipocr data import ch4_test ic15.lmdb --labels Challenge4_Test_Task3_GT.txt
      clipocr data import mnt/ramdisk/max/90kDICT32px mj.lmdb --labels annotation_train.txt
    """
    from ..data.import_words import import_words

    with listed_problems() as on_problem:
        num_samples, num_rejected, num_unlabelled = import_words(
            source,
            out,
            ImportOptions.from_values(given),
            on_problem=on_problem,
            on_note=partial(click.echo, err=True),
        )
    click.echo(
        f"Wrote {out}: {counted(num_samples, 'sample')}, {folder_size(out)}; "
        f"{counted(num_rejected, 'entry', 'entries')} rejected, "
        f"{counted(num_unlabelled, 'image')} without a label."
    )


@data.command("render")
@click.argument("out", metavar="OUT.lmdb", type=NEW_PATH)
@takes(RenderOptions)
def render_command(out: Path, given: dict[str, Any]) -> None:
    """Render synthetic word crops into OUT.lmdb.

    Each word is used about equally often. The same options and fonts give the same bytes, whatever
    --jobs.

    \b
    Example:
      clipocr data render train.lmdb --words words.txt --count 10000 --seed 1
      clipocr data render scene.lmdb --words words.txt --count 10000 --style scene
    """
    from ..data.render import load_words

    options = RenderOptions.from_values(given)
    words = load_words(options.words)
    num_fonts = _render(words, out, options.count, options.drawing)
    click.echo(
        f"Wrote {out}: {counted(options.count, 'sample')} of {counted(len(words), 'word')} "
        f"in {counted(num_fonts, 'font')}, {folder_size(out)}."
    )


def _render(words: Sequence[str], out: Path, count: int, drawing: DrawingOptions) -> int:
    """Render words; return how many fonts there were."""
    from ..data.backgrounds import load_backgrounds
    from ..data.render import load_fonts, render_words

    pictures: Sequence[Path] = ()
    with listed_problems() as on_problem:
        fonts = load_fonts(drawing.fonts, on_problem, of_system=drawing.style == "scene")
        if drawing.backgrounds is not None:
            pictures = load_backgrounds(drawing.backgrounds, drawing.seed, on_problem)
    render_words(words, out, count=count, fonts=fonts, drawing=drawing, backgrounds=pictures)
    return len(fonts)


@data.command("nonwords")
@click.argument("source", metavar="DATA", type=FOLDER)
@click.argument("out", metavar="OUT.lmdb", type=NEW_PATH)
@takes(NonwordOptions)
def nonwords_command(source: Path, out: Path, given: dict[str, Any]) -> None:
    """Render words that language does not help with (table 13 of the paper) into OUT.lmdb.

    They are made of labels chosen by chance from the LMDBs at or below DATA, whose pictures are not
    used. The same options and fonts give the same bytes, whatever --jobs.

    \b
    Example:
      clipocr data nonwords data/test/IC15_1811 data/test/synth-shuffle --mode shuffle
      clipocr data nonwords data/test/IC15_1811 data/test/synth-random --mode random
    """
    from ..data.nonwords import make_nonwords, usable_labels

    options = NonwordOptions.from_values(given)
    labels = usable_labels(source, options.charset, options.labels)
    words = make_nonwords(labels, options)
    num_fonts = _render(words, out, options.count, options.drawing)
    click.echo(
        f"Wrote {out}: {counted(options.count, 'sample')} ({options.mode}) of "
        f"{counted(len(labels), 'label')} in {counted(num_fonts, 'font')}, {folder_size(out)}."
    )


@data.command("show")
@click.argument("lmdb", metavar="LMDB", type=FOLDER)
@takes(ShowWordsOptions)
def show_words_command(lmdb: Path, given: dict[str, Any]) -> None:
    """Draw a contact sheet of words with their labels, numbers and sizes.

    \b
    Example:
      clipocr data show data/train/my_words.lmdb --out words.png
      clipocr data show data/train/my_words.lmdb --out worst.png --order smallest
      clipocr data show data/train/my_words.lmdb --out exits.png --label exit
    """
    from ..data.show_words import show_words

    options = ShowWordsOptions.from_values(given)
    shown = show_words(lmdb, options)
    width_px, height_px = shown.size_px
    click.echo(
        f"Wrote {options.out}: {shown.num_shown:,} of {counted(shown.num_found, 'word')}, "
        f"{width_px}x{height_px} pixels."
    )


@data.command("check")
@click.argument("roots", metavar="PATH...", nargs=-1, required=True, type=FOLDER)
@takes(CheckOptions)
def check_command(roots: tuple[Path, ...], given: dict[str, Any]) -> None:
    """Check every image and label of the LMDBs at or below PATH.

    The exit code is 1 if anything is broken: an image or label that is missing or damaged, or an
    LMDB that cannot be used. Labels that a cache or the charset leaves out are counted, but are not
    broken. Of several PATHs, such as training and test data, it also says what each two share.

    \b
    Example:
      clipocr data check data/train data/test --charset 36
    """
    from ..data.check import check_lmdbs, find_overlaps

    options = CheckOptions.from_values(given)
    reports = check_lmdbs(roots, options)
    for report in reports:
        _print_check(report, options.charset)
    for overlap in find_overlaps(roots, reports):
        share = 100 * overlap.num_images / max(1, overlap.num_second_images)
        click.echo(
            f"Of {overlap.second}, {overlap.num_images:,} of {overlap.num_second_images:,} "
            f"pictures ({share:.1f} %) and {overlap.num_labels:,} of "
            f"{overlap.num_second_labels:,} labels are in {overlap.first} too."
        )
    num_samples = sum(report.num_samples for report in reports)
    num_broken = sum(len(report.broken) for report in reports)
    num_unusable = sum(report.problem is not None for report in reports)
    click.echo(
        f"Checked {counted(len(reports), 'LMDB')}, {counted(num_samples, 'sample')}: "
        f"{num_broken:,} broken, {counted(num_unusable, 'LMDB')} unusable."
    )
    if not all(report.is_sound for report in reports):
        raise SystemExit(1)


def _print_check(report: LmdbReport, charset: Charset) -> None:
    rows = [("samples", f"{report.num_samples:,}"), ("broken", f"{len(report.broken):,}")]
    rows += [(reason, f"{n:,}") for reason, n in sorted(report.label_problems.items())]
    if report.num_spaced:
        rows.append(("with whitespace", f"{report.num_spaced:,}, which is dropped"))
    if report.num_losing:
        rows.append(
            ("losing letters", f"{report.num_losing:,}, reduced to ASCII; or --keep-unicode")
        )
    rows.append(("label lengths", histogram(report.label_lengths)))
    outside = counted_characters(report.outside(charset))
    rows.append((f"outside charset {charset.name}", outside or "none"))
    rows += _picture_rows(report)
    click.echo(report.path)
    if report.problem is None:
        click.echo(plain_table(rows))
    else:
        click.echo(f"unusable: {report.problem}")
    for key, reason in report.broken:
        click.echo(f"{key}: {reason}")
    if report.num_extra:
        click.echo(
            f"Warning: {report.path} holds {counted(report.num_extra, 'key')} beyond those of its "
            f"num-samples ({report.num_samples:,}); nothing reads them",
            err=True,
        )
    if report.pages:
        key, size = report.pages[0]
        click.echo(
            f"Warning: {report.path} holds {counted(len(report.pages), 'picture')} of the size "
            f"of a page or a line, such as {key} ({size}); cut words out with a text detector "
            "first",
            err=True,
        )
    click.echo()


def _picture_rows(report: LmdbReport) -> list[tuple[str, str]]:
    """Return what is said of the pictures that can be decoded."""
    if not report.widths_px:
        return []
    rows = []
    for name, (least, median, largest) in report.measured().items():
        form = ",.0f" if "pixels" in name else ",.2f"
        rows.append((name, f"{least:{form}} to {largest:{form}}, median {median:{form}}"))
    num_tall, (num_again, num_otherwise) = report.num_tall, report.duplicates
    share = 100 * num_tall / len(report.widths_px)
    tall = f"{num_tall:,} ({share:.1f} %), stretched unless built with --tall rotate"
    again = f"{num_again:,} to the byte, {num_otherwise:,} of them with another label"
    rows.append(("tall", tall if num_tall else "none"))
    rows.append(("duplicates", again if num_again else "none"))
    return rows
