"""The commands ``clipocr eval`` and ``clipocr latency``, which measure trained students."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...shared.options import FOLDER, NEW_PATH, PATH, device_option
from ...shared.terminal import byte_size, counted, warn_of_random_teacher

if TYPE_CHECKING:
    import torch

    from ...shared.charset import Charset
    from ..evaluation.evaluate import SetResult
    from ..models.student import Student

_data_option = click.option(
    "--data",
    "roots",
    metavar="ROOT",
    type=FOLDER,
    required=True,
    multiple=True,
    help="Folder with test sets at any depth: LMDBs, and image folders with a label file.",
)


@click.command("eval")
@click.argument("runs", metavar="RUN-OR-CHECKPOINT...", nargs=-1, required=True, type=PATH)
@_data_option
@click.option(
    "--charset",
    "charset_name",
    default="36",
    show_default=True,
    help="Test charset, applied to label and prediction: 36 for the published numbers, 62, 94, "
    "or a text file.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Images at once.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic; published numbers are fp32.",
)
@click.option(
    "--json",
    "json_path",
    type=NEW_PATH,
    show_default="eval.json in the run's folder",
    help="Where the figures of one RUN are written, or the comparison of several; what was read "
    "in each picture goes to a .predictions.jsonl beside them.",
)
@click.option(
    "--report",
    "report_folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write DIR/index.html, one page that opens from disk: tables, accuracy by length and "
    "character, confusions, calibration, errors with their pictures, the decoder's attention.",
)
@device_option
def eval_command(
    runs: tuple[Path, ...],
    roots: tuple[Path, ...],
    charset_name: str,
    batch_size: int,
    precision: str,
    json_path: Path | None,
    report_folder: Path | None,
    device_name: str,
) -> None:
    """Measure word accuracy on every test set at or below ROOT, as PARSeq does.

    Benchmarks are known by their folders' names and averaged in groups, by samples and plainly.
    Confidence is the product of the character probabilities, EOS included. Several RUNs are set
    side by side, with their differences to the first and McNemar's exact test.

    \b
    Example:
      clipocr eval run --data data/test
      clipocr eval run other_run --data data/test --charset 94 --report report
    """
    from ...shared.charset import Charset
    from ...shared.device import choose_device
    from ..evaluation.evaluate import evaluate
    from ..evaluation.results import (
        predictions_path,
        remarks_on,
        results_as_table,
        write_predictions,
        write_results,
    )
    from ..evaluation.test_sets import open_test_sets
    from ..loop.checkpoint import find_checkpoint

    is_one = len(runs) == 1
    checkpoints = [find_checkpoint(run) for run in runs]
    paths = [json_path] if is_one and json_path else [_figures_path(run) for run in runs]
    comparison_path = json_path or paths[0].with_name("comparison.json")
    for path in [*paths, comparison_path]:
        if not os.access(path.parent, os.W_OK):
            advice = "choose a place by --json" if is_one else "evaluate it alone, with --json"
            raise click.ClickException(f"{path} cannot be written; {advice}")
    if report_folder is not None:
        _make_folder(report_folder)
    charset = Charset.load(charset_name)
    device = choose_device(device_name)
    # Everything first: what is wrong with the last student must not wait for the others' reading.
    students = [_load(checkpoint, device) for checkpoint in checkpoints]
    of_length = {
        longest: open_test_sets(roots, charset, longest)
        for longest in {student.tokenizer.max_label_length for student in students}
    }
    all_sets = [of_length[student.tokenizer.max_label_length] for student in students]
    all_results = []
    for student, test_sets, checkpoint, path in zip(
        students, all_sets, checkpoints, paths, strict=True
    ):
        if not is_one:
            click.echo(f"{checkpoint}:", err=True)
        _note_missing_characters(student, charset)
        results = evaluate(student, test_sets, precision=precision, batch_size=batch_size)
        all_results.append(results)
        write_results(path, results, checkpoint=checkpoint, charset=charset)
        write_predictions(predictions_path(path), results)
    if is_one:
        click.echo(results_as_table(results))
    else:
        _compare(all_results, checkpoints, charset, comparison_path)
    for remark in remarks_on(all_results, charset):
        click.echo(remark, err=True)
    if report_folder is not None:
        from ..report.detail import Evaluation
        from ..report.page import write_report

        page = write_report(
            report_folder,
            [
                Evaluation(checkpoint=checkpoint, test_sets=sets, results=results)
                for checkpoint, sets, results in zip(
                    checkpoints, all_sets, all_results, strict=True
                )
            ],
            charset=charset,
            precision=precision,
            device=device,
        )
        click.echo(f"Wrote {page}: {byte_size(page.stat().st_size)}, to open in a browser.")
    written = str(paths[0]) if is_one else f"{comparison_path}, and {paths[0].name} of each run"
    click.echo(
        f"Wrote {written}: {counted(len(results), 'test set')} for "
        f"{', '.join(map(str, checkpoints))}."
    )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise click.ClickException(
            f"{path} cannot be made: {e.strerror}; choose another place by --report"
        ) from e


def _figures_path(run: Path) -> Path:
    """Return where an evaluation's figures go: another checkpoint of a run overwrites nothing."""
    return run / "eval.json" if run.is_dir() else run.with_suffix(".eval.json")


def _load(checkpoint: Path, device: torch.device) -> Student:
    from ...shared.cache.schema import TeacherSpec
    from ..loop.checkpoint import build_student, load_checkpoint

    saved = load_checkpoint(checkpoint)
    teacher = str(saved["teacher"])
    warn_of_random_teacher(TeacherSpec.has_random_weights(teacher), f"{teacher} of this student")
    return build_student(saved, checkpoint).to(device)


def _note_missing_characters(student: Student, charset: Charset) -> None:
    own = student.tokenizer.charset
    # What it writes passes through the test charset, which may fold its case.
    writable = {c for character in own.characters for c in charset.adapt(character)}
    missing = [c for c in charset.characters if c not in writable]
    if missing:
        click.echo(
            f"Note: this student was trained on charset {own.name} and cannot write "
            f"{counted(len(missing), 'character')} of test charset {charset.name} "
            f"({''.join(missing[:8])}{'...' if len(missing) > 8 else ''}); words with them count "
            "as wrong. --charset chooses another test charset.",
            err=True,
        )


def _compare(
    all_results: Sequence[Sequence[SetResult]],
    checkpoints: Sequence[Path],
    charset: Charset,
    path: Path,
) -> None:
    from ..evaluation.paired import (
        compare,
        comparison_as_json,
        comparison_as_table,
        student_letters,
    )
    from ..evaluation.results import write_json

    comparison = compare(all_results)
    named = dict(zip(student_letters(len(checkpoints)), map(str, checkpoints), strict=True))
    for letter, name in named.items():
        click.echo(f"{letter}: {name}")
    click.echo(f"\n{comparison_as_table(comparison)}")
    record = {"checkpoints": named, "charset": charset.name, **comparison_as_json(comparison)}
    write_json(path, record)


def _parse_batch_sizes(
    _ctx: click.Context, _option: click.Parameter, value: str
) -> tuple[int, ...]:
    sizes = value.split(",")
    if not all(size.isdigit() and int(size) for size in sizes):
        raise click.BadParameter(f"{value!r} is not a list of batch sizes such as 1,64")
    return tuple(map(int, sizes))


@click.command()
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=PATH)
@_data_option
@click.option(
    "--images",
    "num_images",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Pictures to read, taken evenly from all test sets.",
)
@click.option(
    "--batch-sizes",
    callback=_parse_batch_sizes,
    default="1,64",
    show_default=True,
    help="Pictures at once.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic.",
)
@device_option
def latency(
    run_or_checkpoint: Path,
    roots: tuple[Path, ...],
    num_images: int,
    batch_sizes: tuple[int, ...],
    precision: str,
    device_name: str,
) -> None:
    """Measure how long a student takes per picture, preprocessing apart.

    On a CPU, OMP_NUM_THREADS sets the number of threads.

    \b
    Example:
      clipocr latency run --data data/test
    """
    from ...shared.device import choose_device
    from ..evaluation.latency import latency_as_table, load_pictures, measure_latency
    from ..evaluation.test_sets import open_test_sets
    from ..loop.checkpoint import find_checkpoint

    student = _load(find_checkpoint(run_or_checkpoint), choose_device(device_name))
    own = student.tokenizer.charset
    test_sets = open_test_sets(roots, own, student.tokenizer.max_label_length)
    pictures = load_pictures(test_sets, num_images)
    click.echo(latency_as_table(measure_latency(student, pictures, batch_sizes, precision)))
