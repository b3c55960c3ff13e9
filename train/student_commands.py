"""The commands ``clipocr eval`` and ``clipocr read``, which use a trained student."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..shared.errors import ClipocrError
from ..shared.options import FOLDER, NEW_PATH, PATH, device_option
from ..shared.terminal import counted, warn_of_random_teacher


@click.command("eval")
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=PATH)
@click.option(
    "--data",
    "roots",
    metavar="ROOT",
    type=FOLDER,
    required=True,
    multiple=True,
    help="Folder with test LMDBs at any depth; may be given more than once.",
)
@click.option(
    "--charset",
    "charset_name",
    default="36",
    show_default=True,
    help="Test charset, applied to label and prediction; 36 for the published numbers.",
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
    show_default="eval.json beside the checkpoint",
    help="Where the figures are written.",
)
@device_option
def eval_command(
    run_or_checkpoint: Path,
    roots: tuple[Path, ...],
    charset_name: str,
    batch_size: int,
    precision: str,
    json_path: Path | None,
    device_name: str,
) -> None:
    """Measure word accuracy on every LMDB at or below ROOT.

    \b
    Example:
      clipocr eval run --data data/test
    """
    from tabulate import tabulate

    from ..shared.charset import Charset
    from ..shared.device import choose_device
    from ..shared.schema import TeacherSpec
    from .checkpoint import find_checkpoint, load_checkpoint, load_student
    from .evaluation.evaluate import evaluate, open_test_sets, results_as_table, write_results

    checkpoint = find_checkpoint(run_or_checkpoint)
    json_path = json_path or checkpoint.parent / "eval.json"
    if not os.access(json_path.parent, os.W_OK):
        raise click.ClickException(f"{json_path} cannot be written; choose a place by --json")
    student = load_student(checkpoint, choose_device(device_name))
    teacher = str(load_checkpoint(checkpoint)["teacher"])
    warn_of_random_teacher(TeacherSpec.has_random_weights(teacher), f"{teacher} of this student")
    charset = Charset.load(charset_name)
    test_sets = open_test_sets(roots, charset, student.config.max_label_length)
    results = evaluate(student, test_sets, precision=precision, batch_size=batch_size)
    headers, rows = results_as_table(results)
    click.echo(
        tabulate(
            rows,
            headers=headers,
            tablefmt="github",
            colalign=("left", *["right"] * (len(headers) - 1)),
            disable_numparse=True,
        )
    )
    for result in results:
        if result.num_broken or result.num_unlabelled:
            click.echo(
                f"{result.name}: {counted(result.num_broken, 'broken image')} counted as wrong, "
                f"{counted(result.num_unlabelled, 'sample')} left out (no label of charset "
                f"{charset_name}, or too long)",
                err=True,
            )
    write_results(json_path, results, checkpoint=checkpoint, charset=charset)
    click.echo(f"Wrote {json_path}: {counted(len(results), 'test set')} for {checkpoint}.")


@click.command()
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=PATH)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=NEW_PATH)
@device_option
def read(run_or_checkpoint: Path, images: tuple[Path, ...], device_name: str) -> None:
    """Read cropped words: prints file, text and confidence, separated by tabs.

    Each IMAGE is one word, not a page. Exits with 1 if one of them cannot be read.

    \b
    Example:
      clipocr read run word1.png word2.jpg
    """
    from ..shared.device import choose_device
    from .checkpoint import find_checkpoint, load_student
    from .evaluation.evaluate import read_images

    student = load_student(find_checkpoint(run_or_checkpoint), choose_device(device_name))
    num_problems = 0
    for path, outcome in read_images(student, images):
        if isinstance(outcome, ClipocrError):
            num_problems += 1
            click.echo(f"{path}: {outcome}", err=True)
        else:
            click.echo(f"{path}\t{outcome.text}\t{outcome.confidence:.4f}")
    if num_problems:
        raise SystemExit(1)
