"""The commands ``clipocr eval`` and ``clipocr latency``, which measure what was trained."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...shared.options import PATH, takes
from ...shared.terminal import byte_size, counted, warn_of_random_teacher
from ..evaluation.options import EvalOptions, LatencyOptions, TestSetOptions

if TYPE_CHECKING:
    from ..evaluation.results import Evaluation
    from ..evaluation.tables import ShownTable
    from ..reading.readers import PictureBatchReader, ViewReader


@click.command("eval")
@click.argument("runs", metavar="[RUN-OR-CHECKPOINT]...", nargs=-1, type=PATH)
@takes(EvalOptions)
def eval_command(runs: tuple[Path, ...], given: dict[str, Any]) -> None:
    """Measure word accuracy on test sets, by PARSeq's protocol.

    Benchmarks are recognised by the names of their folders. Groups of them are averaged, both over
    words and over sets. Confidence is the product of the character probabilities, EOS included.
    Several RUNs, and other models' --predictions, are shown side by side, with their differences
    from the first and McNemar's exact test.

    \b
    Example:
      clipocr eval run --data data/test
      clipocr eval run other_run --data data/test --charset 36,62,94 --report report
      clipocr eval run --predictions theirs.tsv --data data/test --format latex > table.tex
    """
    from ..evaluation.evaluate import evaluate_charsets, merge_test_sets, require_predictions
    from ..evaluation.names import short_names
    from ..evaluation.results import write_json
    from ..evaluation.shown import describe_source
    from ..evaluation.test_sets import open_test_sets

    options = EvalOptions.from_values(given)
    # Everything first: what is wrong with the last run must not wait for the others' reading.
    readers = _readers(runs, options)
    names = short_names(readers)
    places = _places((*runs, *options.predictions), names, options.out)
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
    of_length = {
        longest: [open_test_sets(options.data, charset, longest) for charset in options.charsets]
        for longest in {reader.max_label_length for reader in readers}
    }
    for reader in readers:
        require_predictions(reader, merge_test_sets(of_length[reader.max_label_length]))
    of_readers, written = [], []
    for name, reader, place in zip(names, readers, places, strict=True):
        click.echo(f"Reading with {name} ...", err=True)
        of_readers.append(evaluate_charsets(reader, of_length[reader.max_label_length]))
        for i, evaluation in enumerate(of_readers[-1]):
            path = place.with_suffix(f".{evaluation.charset.name}.json") if i else place
            write_json(path, evaluation.to_json())
            evaluation.write_predictions(path)
            written.append(path)
    for name, reader in zip(names, readers, strict=True):
        click.echo(f"{name}: {describe_source(reader)}", err=options.prints_figures_alone)
    of_charsets = list(zip(*of_readers, strict=True))
    _print_figures(of_charsets, options)
    remarks = (remark for some in of_charsets for each in some for remark in each.remarks)
    for remark in dict.fromkeys(remarks):
        click.echo(remark, err=True)
    if options.report is not None:
        _write_reports(of_charsets, options.report, options)
    num_sets = counted(max(len(some[0].sets) for some in of_charsets), "test set")
    click.echo(
        f"Wrote {', '.join(map(str, written))}: {num_sets} for "
        f"{', '.join(reader.name for reader in readers)}.",
        err=options.prints_figures_alone,
    )


def _print_figures(of_charsets: Sequence[Sequence[Evaluation]], options: EvalOptions) -> None:
    """Print the figures of all readers under each test charset."""
    from ..evaluation.shown import figures_of, tables_of

    if options.json:
        click.echo(json.dumps([figures_of(some) for some in of_charsets], indent=1))
        return
    tables: list[ShownTable] = []
    for some in of_charsets:
        title = f"Test charset {some[0].charset.name}" if len(of_charsets) > 1 else ""
        tables += tables_of(some, title)
    _print_tables(tables, options)


def _write_reports(
    of_charsets: Sequence[Sequence[Evaluation]], folder: Path, options: EvalOptions
) -> None:
    """Write the page of the first test charset to a folder, those of others below it."""
    for i, (first, *others) in enumerate(of_charsets):
        page = first.report(folder / first.charset.name if i else folder, *others)
        click.echo(
            f"Wrote {page}: {byte_size(page.stat().st_size)}, to open in a browser.",
            err=options.prints_figures_alone,
        )


def _readers(runs: Sequence[Path], options: EvalOptions) -> list[PictureBatchReader]:
    """Load every run and every file of predictions."""
    from ..evaluation.predictions import RecordedReader
    from ..reading.readers import Reader

    if not runs and not options.predictions:
        raise click.UsageError("expected a RUN-OR-CHECKPOINT, or --predictions FILE")
    clips = options.clip * len(runs) if len(options.clip) == 1 else options.clip
    if clips and len(clips) != len(runs):
        raise click.UsageError(
            f"--clip names {counted(len(clips), 'place')} for {counted(len(runs), 'RUN')}; "
            "expected one for all of them, or one for each"
        )
    loaded = [
        _load(run, options, clip, options.batch_size, len(runs) > 1)
        for run, clip in zip(runs, clips or [None] * len(runs), strict=True)
    ]
    if clips and not any(isinstance(r, Reader) and r.recogniser.needs_clip for r in loaded):
        raise click.UsageError(
            f"--clip {','.join(options.clip)}: these RUNs read without CLIP; leave it out"
        )
    _warn_of_random_teachers(loaded)
    return [*loaded, *map(RecordedReader, options.predictions)]


def _places(paths: Sequence[Path], names: Sequence[str], out: Path | None) -> list[Path]:
    """Return where the figures of each run, checkpoint or file of predictions go."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return [out / f"{name.replace('/', '-')}.eval.json" for name in names]
    # Another checkpoint of a run overwrites nothing.
    places = [
        path / "eval.json" if path.is_dir() else path.with_suffix(".eval.json") for path in paths
    ]
    for place in places:
        if not os.access(place.parent, os.W_OK):
            raise click.ClickException(f"{place} cannot be written; choose a folder by --out")
    return places


def _print_tables(tables: Sequence[ShownTable], options: TestSetOptions) -> None:
    """Print tables to stdout, with empty lines between them, and around them beside other lines."""
    shown = "\n\n".join(table.formatted(options.format) for table in tables)
    click.echo(shown if options.prints_figures_alone else f"\n{shown}\n")
    if options.format == "csv":
        for notes in dict.fromkeys(table.notes for table in tables if table.notes):
            click.echo(notes, err=True)


def _load(
    run: Path,
    options: TestSetOptions,
    clip: str | None,
    batch_size: int = EvalOptions.batch_size,
    clip_is_shared: bool = False,
) -> ViewReader:
    """Load a run, a checkpoint, or an ONNX file."""
    from ..deploy.onnx_format import OnnxReader
    from ..reading.readers import load_reader

    if run.suffix == ".onnx":
        return OnnxReader(run, batch_size=batch_size)
    return load_reader(
        run,
        device=options.device,
        batch_size=batch_size,
        precision=options.precision,
        clip=clip,
        clip_is_shared=clip_is_shared,
    )


def _warn_of_random_teachers(readers: Sequence[ViewReader]) -> None:
    from ...shared.cache.spec import TeacherSpec
    from ..reading.readers import Reader

    for name in dict.fromkeys(str(r.teacher) for r in readers if isinstance(r, Reader)):
        warn_of_random_teacher(TeacherSpec.has_random_weights(name), name)


@click.command()
@click.argument(
    "models", metavar="RUN-OR-CHECKPOINT-OR-ONNX...", nargs=-1, required=True, type=PATH
)
@takes(LatencyOptions)
def latency(models: tuple[Path, ...], given: dict[str, Any]) -> None:
    """Measure students' time per picture and their multiply-adds (GMACs).

    Preprocessing is timed separately. On a CPU, OMP_NUM_THREADS sets the number of threads.

    \b
    Example:
      clipocr latency run --data data/test
      clipocr latency run run/model.onnx --data data/test --format latex
    """
    from ...shared.charset import Charset
    from ..evaluation.latency import load_pictures, measure_latency
    from ..evaluation.test_sets import open_test_sets

    options = LatencyOptions.from_values(given)
    readers = [
        _load(model, options, options.clip, clip_is_shared=len(models) > 1) for model in models
    ]
    _warn_of_random_teachers(readers)
    longest = max(reader.max_label_length for reader in readers)
    # Pictures whose labels the first can write: all models read the same ones.
    charset = readers[0].charset or Charset.load("36")
    pictures = load_pictures(open_test_sets(options.data, charset, longest), options.images)
    report = measure_latency(readers, pictures, options.batch_sizes)
    if options.json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        _print_tables([report.table], options)
