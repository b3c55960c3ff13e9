"""The commands ``clipocr eval`` and ``clipocr latency``, which measure what was trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...shared.options import PATH, takes
from ...shared.terminal import byte_size, counted, warn_of_random_teacher
from ..evaluation.options import EvalOptions, LatencyOptions, TestSetOptions

if TYPE_CHECKING:
    from ..evaluation.results import Evaluation
    from ..reading.readers import Reader


@click.command("eval")
@click.argument("runs", metavar="RUN-OR-CHECKPOINT...", nargs=-1, required=True, type=PATH)
@takes(EvalOptions)
def eval_command(runs: tuple[Path, ...], given: dict[str, Any]) -> None:
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
    from ..evaluation.evaluate import evaluate_sets
    from ..evaluation.paired import reader_letters
    from ..evaluation.results import write_json
    from ..evaluation.stages import stage_table
    from ..evaluation.test_sets import open_test_sets

    options = EvalOptions.from_values(given)
    if options.json and len(runs) > 1:
        raise click.UsageError("--json is the place of one RUN's figures; evaluate it alone")
    # Another checkpoint of a run overwrites nothing.
    paths = [run / "eval.json" if run.is_dir() else run.with_suffix(".eval.json") for run in runs]
    if options.json:
        paths = [options.json]
    for path in paths:
        if not os.access(path.parent, os.W_OK):
            raise click.ClickException(
                f"{path} cannot be written; evaluate the run alone and choose a place by --json"
            )
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
    charset = Charset.load(options.charset)
    # Everything first: what is wrong with the last run must not wait for the others' reading.
    readers = [_load(run, options, options.batch_size, len(runs) > 1) for run in runs]
    if options.clip is not None and not any(reader.recogniser.needs_clip for reader in readers):
        raise click.UsageError(f"--clip {options.clip}: these RUNs read without CLIP; leave it out")
    of_length = {
        longest: open_test_sets(options.data, charset, longest)
        for longest in {reader.max_label_length for reader in readers}
    }
    evaluations: list[Evaluation] = []
    for reader, path in zip(readers, paths, strict=True):
        click.echo(f"{reader.name}:", err=True)
        evaluation = evaluate_sets(reader, of_length[reader.max_label_length])
        write_json(path, evaluation.to_json())
        evaluation.write_predictions(path)
        evaluations.append(evaluation)
    letters = reader_letters(len(readers)) if len(readers) > 1 else [""]
    if len(readers) > 1:
        for letter, reader in zip(letters, readers, strict=True):
            click.echo(f"{letter}: {reader.name}")
        click.echo()
    click.echo(evaluations[0].table(*evaluations[1:]))
    for letter, evaluation in zip(letters, evaluations, strict=True):
        if evaluation.stages:
            click.echo(f"\nStages{letter and f' of {letter}'}:\n{stage_table(evaluation.stages)}")
    for remark in dict.fromkeys(remark for some in evaluations for remark in some.remarks):
        click.echo(remark, err=True)
    if options.report is not None:
        page = evaluations[0].report(options.report, *evaluations[1:])
        click.echo(f"Wrote {page}: {byte_size(page.stat().st_size)}, to open in a browser.")
    click.echo(
        f"Wrote {', '.join(map(str, paths))}: {counted(len(evaluations[0].sets), 'test set')} for "
        f"{', '.join(reader.name for reader in readers)}."
    )


def _load(
    run: Path,
    options: TestSetOptions,
    batch_size: int = EvalOptions.batch_size,
    clip_is_shared: bool = False,
) -> Reader:
    from ...shared.cache.spec import TeacherSpec
    from ..reading.readers import load_reader

    reader = load_reader(
        run,
        device=options.device,
        batch_size=batch_size,
        precision=options.precision,
        clip=options.clip,
        clip_is_shared=clip_is_shared,
    )
    teacher = str(reader.teacher)
    warn_of_random_teacher(TeacherSpec.has_random_weights(teacher), f"{teacher} of this student")
    return reader


@click.command()
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=PATH)
@takes(LatencyOptions)
def latency(run_or_checkpoint: Path, given: dict[str, Any]) -> None:
    """Measure how long a student takes per picture, preprocessing apart.

    On a CPU, OMP_NUM_THREADS sets the number of threads.

    \b
    Example:
      clipocr latency run --data data/test
    """
    from ..evaluation.latency import load_pictures, measure_latency
    from ..evaluation.test_sets import open_test_sets

    options = LatencyOptions.from_values(given)
    reader = _load(run_or_checkpoint, options)
    own = reader.recogniser.tokenizer
    test_sets = open_test_sets(options.data, own.charset, own.max_label_length)
    pictures = load_pictures(test_sets, options.images)
    click.echo(measure_latency(reader, pictures, options.batch_sizes))
