"""The commands ``clipocr train`` and ``clipocr ablate``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ...shared.options import (
    CACHE,
    FOLDER,
    NEW_PATH,
    PATH,
    copies_options,
    device_option,
    parse_taps,
)
from ...shared.terminal import counted, warn_of_random_teacher

if TYPE_CHECKING:
    from ..loop.run import TrainSummary


def _setting(*names: str, **attributes: Any) -> Callable[..., Any]:
    """Declare an option that `train_config` knows by the same name."""
    return click.option(*names, **{"show_default": True, **attributes})


def _parse_stages(
    ctx: click.Context, option: click.Parameter, value: str
) -> tuple[int, ...] | None:
    """Read stage numbers as `parse_taps` reads blocks, or ``none``."""
    return () if value == "none" else parse_taps(ctx, option, value)


def _parse_settings(
    _ctx: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """Read NAME=VALUE; what is no TOML value is a text."""
    import tomllib

    settings = {}
    for assignment in values:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise click.BadParameter(f"{assignment!r} is not NAME=VALUE")
        try:
            settings[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = value
    return settings


def _parse_seeds(
    ctx: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    try:
        return parse_taps(ctx, option, value)
    except click.BadParameter:
        raise click.BadParameter(f"{value!r} is not a list of seeds such as 0,1,2") from None


def _parse_share(_ctx: click.Context, _option: click.Parameter, value: str) -> tuple[int, int]:
    """Read I/N, I counted from 1; return (I - 1, N)."""
    index, _, count = value.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise click.BadParameter(f"{value!r} is not I/N with I from 1 to N, such as 1/4")
    return int(index) - 1, int(count)


@click.command()
@click.option(
    "--cache",
    "cache_path",
    type=CACHE,
    required=True,
    help="Feature cache: a folder, or an address such as s3://bucket/mjst.cache.",
)
@click.option("--out", type=NEW_PATH, required=True, help="Folder of the run.")
@copies_options
@_setting(
    "--recipe",
    type=click.Choice(["paper", "small-gpu"]),
    default="paper",
    help="Defaults of the settings below: the paper's, or the same in parts, for 4 to 6 GB.",
)
@_setting(
    "--student",
    type=click.Choice(["tiny", "small", "base"]),
    default="small",
    help="Size of the student; small is the paper's.",
)
@_setting("--charset", default="36", help="36, 62, 94 or a text file.")
@_setting("--max-label-length", type=int, default=25, help="Longest label learned.")
@_setting("--image-taps", callback=parse_taps, default="3,6,9", help="Image blocks to follow.")
@_setting("--text-taps", callback=parse_taps, default="3,6,9", help="Text blocks to follow.")
@_setting(
    "--image-stages",
    callback=_parse_stages,
    default="1,2,3",
    help="Encoder stages that follow them; none: no image distillation (table 1).",
)
@_setting(
    "--text-stages",
    callback=_parse_stages,
    default="1,2,3",
    help="Decoder layers that follow them, the last tap first; none: no text (tables 1, 12).",
)
@_setting(
    "--word/--no-word",
    default=True,
    help="Whether the class token follows the teacher's EOT embedding.",
)
@_setting(
    "--tokens",
    type=click.Choice(["char", "word"]),
    default="char",
    help="Text features to follow: of characters, or of the label whole (table 7).",
)
@_setting(
    "--mask-pads/--keep-pads",
    default=False,
    help="Whether label positions after EOS stay out of the text terms; officially they are in.",
)
@_setting(
    "--loss",
    type=click.Choice(["lcl", "l1", "cosine", "kl"]),
    default="lcl",
    help="What compares features (table 3).",
)
@_setting("--intra-weight", type=float, default=5.0, help="lambda_1 of LCL (tables 2, 5).")
@_setting("--inter-weight", type=float, default=0.1, help="lambda_2 of LCL (tables 2, 6).")
@_setting("--temperature", type=float, default=0.03, help="tau of LCL (table 4).")
@_setting(
    "--scope",
    type=click.Choice(["batch", "sample"]),
    default="batch",
    help="Rows that LCL relates: of the whole batch, as officially, or of each sample, as printed.",
)
@_setting(
    "--gather",
    type=click.Choice(["none", "inter", "all"]),
    default="inter",
    help="LCL terms that see rows of other processes: inter officially; all is the loss of one.",
)
@_setting("--epochs", type=click.IntRange(min=1), default=5, help="Passes over the cache.")
@_setting(
    "--batch-size",
    type=click.IntRange(min=1),
    default=320,
    help="Samples per optimizer step, of all processes together.",
)
@_setting(
    "--accumulate",
    type=click.IntRange(min=1),
    default=1,
    help="Parts to cut each batch into, to need less memory; LCL relates the rows of a part.",
)
@_setting(
    "--learning-rate",
    type=float,
    default=1.2374e-3,
    help="Peak of the OneCycle schedule; the default is the paper's for batches of 320.",
)
@_setting("--warmup-fraction", type=float, default=0.075, help="Share of the steps before it.")
@_setting("--weight-decay", type=float, default=0.0, help="On matrices only.")
@_setting("--grad-clip-norm", type=float, default=20.0, help="Largest norm of the gradient.")
@_setting(
    "--max-skipped-steps",
    type=click.IntRange(min=0),
    default=25,
    help="Steps in a row that may be skipped because their gradient is not finite.",
)
@_setting("--fraction", type=float, default=1.0, help="Share of the cache to train on.")
@_setting(
    "--views",
    type=click.IntRange(min=1),
    show_default="all the cache has",
    help="Views to train on; epoch e sees view e mod K.",
)
@_setting(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Arithmetic of the student; auto is mixed precision where the device has it.",
)
@_setting(
    "--compile/--no-compile",
    default=False,
    help="Whether torch.compile fuses the encoder; takes minutes at the start.",
)
@_setting("--seed", type=int, default=0, help="Of weights, order, dropout.")
@click.option(
    "--val-data",
    "val_roots",
    metavar="ROOT",
    type=FOLDER,
    multiple=True,
    help="Folder with validation LMDBs; best.pt is chosen by them.",
)
@click.option(
    "--checkpoint-every-steps",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Steps between writes of last.pt, besides the end of each epoch.",
)
@click.option(
    "--init",
    type=PATH,
    show_default="random weights",
    help="Begin with the student of a run or checkpoint (fine-tuning); another charset may be.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out where it stopped.")
@device_option
def train(
    cache_path: str | Path,
    out: Path,
    cache_dir: Path | None,
    cache_bytes: int,
    val_roots: tuple[Path, ...],
    checkpoint_every_steps: int,
    init: Path | None,
    resume: bool,
    device_name: str,
    **settings: Any,
) -> None:
    """Train a student from a cache. CLIP is not loaded, not even imported.

    Ctrl-C and SIGTERM write a checkpoint first; --resume goes on as if nothing had happened.
    Several GPUs share each batch under torchrun --nproc-per-node N -m clipocr train ...

    \b
    Example:
      clipocr train --cache mjst.cache --out run --val-data data/val
    """
    from ...shared.device import choose_device, choose_precision
    from ..loop.config import TrainPlace
    from ..loop.processes import Processes
    from ..loop.run import train as train_run
    from ..loop.settings import asked_precision, train_config
    from ..loop.stopping import StopRequestedError

    processes = Processes.from_environment()
    device = choose_device(device_name)
    if device.type == "cuda" and processes.world_size > 1:
        if device.index is not None:
            raise click.UsageError(
                f"--device {device_name} would put all {processes.world_size} processes on one "
                "GPU; pass --device cuda"
            )
        device = choose_device(f"cuda:{processes.local_rank}")
    given = {name: value for name, value in settings.items() if _is_given(name)}
    config = train_config(given, device)
    place = TrainPlace(
        cache=cache_path,
        cache_dir=cache_dir,
        max_cache_bytes=cache_bytes,
        out=out,
        device=device,
        processes=processes,
        val_data=val_roots,
        val_charset=config.charset,
        command=tuple(sys.argv),
        checkpoint_every_steps=checkpoint_every_steps,
    )
    if processes.is_first:
        _, reason = choose_precision(asked_precision(given), device)
        click.echo(f"Training on {device} in {config.precision} ({reason}).", err=True)
    try:
        summary = train_run(config, place, resume=resume, init=init)
    except StopRequestedError as e:
        click.echo(f"Stopped; {out / 'last.pt'} holds the run, go on with --resume.", err=True)
        raise SystemExit(128 + e.signal_number) from None
    if processes.is_first:
        _report_training(out, summary)


def _is_given(name: str) -> bool:
    """Whether an option stood on the command line; a recipe gives way only to those."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def _report_training(out: Path, summary: TrainSummary) -> None:
    from ..loop.curves import draw_curves

    warn_of_random_teacher(summary.teacher_is_random, "of this cache")
    if summary.num_skipped:
        click.echo(
            f"Note: {counted(summary.num_skipped, 'step')} had no finite gradient and did nothing.",
            err=True,
        )
    try:
        draw_curves(out)
    except ImportError as e:
        click.echo(f"Note: {out / 'curves.png'} was not drawn: {e}.", err=True)
    best = "" if summary.best_accuracy is None else f", best accuracy {summary.best_accuracy:.1f} %"
    speed = (
        f"; {summary.samples_per_second:,.0f} samples/s, "
        f"{100 * summary.data_wait_fraction:.1f} % of the time waiting for data"
        if summary.samples_per_second
        else "; it was finished already"
    )
    click.echo(
        f"Wrote {summary.checkpoint}: {counted(summary.num_steps, 'step')}, loss "
        f"{summary.first_loss:.3f} in the first epoch and {summary.last_loss:.3f} in the last"
        f"{best}{speed}."
    )


@click.command()
@click.argument("table_name", metavar="TABLE")
@click.option("--cache", "cache_path", type=CACHE, required=True, help="Feature cache of all runs.")
@copies_options
@click.option("--out", type=NEW_PATH, required=True, help="Folder of the runs and of the table.")
@click.option(
    "--data",
    "roots",
    metavar="ROOT",
    type=FOLDER,
    multiple=True,
    required=True,
    help="Folder with test LMDBs, at any depth.",
)
@click.option(
    "--set",
    "overrides",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_parse_settings,
    help="A setting of every run, as in the table: student=tiny, epochs=3, image_taps=[1,2,3].",
)
@click.option(
    "--seeds", type=str, show_default="the table's", callback=_parse_seeds, help="Such as 0,1,2."
)
@click.option(
    "--only",
    metavar="I/N",
    default="1/1",
    callback=_parse_share,
    show_default=True,
    help="Train the I-th of N shares of the runs, as with one process per GPU.",
)
@click.option(
    "--val-data",
    "val_roots",
    metavar="ROOT",
    type=FOLDER,
    multiple=True,
    help="Validation LMDBs; each run is then judged by its best.pt.",
)
@device_option
def ablate(
    table_name: str,
    cache_path: str | Path,
    cache_dir: Path | None,
    cache_bytes: int,
    out: Path,
    roots: tuple[Path, ...],
    overrides: Mapping[str, Any],
    seeds: tuple[int, ...] | None,
    only: tuple[int, int],
    val_roots: tuple[Path, ...],
    device_name: str,
) -> None:
    """Train and evaluate a table of runs over one cache.

    TABLE is a TOML file, or a table of the paper: table1 to table7, table12. Finished runs are left
    alone, interrupted ones go on, so the same command may be repeated. OUT then holds a run folder
    per variant and seed, and the table as table.md, table.csv and table.png.

    \b
    Example:
      clipocr ablate table1 --cache mjst.cache --out table1 --data data/test
      clipocr ablate table2 --cache words.cache --out t2 --data data/test --set student=tiny
    """
    from dataclasses import replace

    from ...shared.charset import Charset
    from ...shared.device import choose_device
    from ..ablation.runs import ablate as ablate_table
    from ..ablation.table import load_table
    from ..loop.config import TrainPlace
    from ..loop.processes import Processes
    from ..loop.stopping import StopRequestedError

    if Processes.from_environment().world_size > 1:
        raise click.UsageError("ablate is one process per GPU, each with its share: --only I/N")
    table = load_table(table_name)
    table = replace(table, settings={**table.settings, **overrides}, seeds=seeds or table.seeds)
    place = TrainPlace(
        cache=cache_path,
        cache_dir=cache_dir,
        max_cache_bytes=cache_bytes,
        out=out,
        device=choose_device(device_name),
        val_data=val_roots,
        val_charset=Charset.load("36"),
        command=tuple(sys.argv),
    )
    try:
        result = ablate_table(table, place, roots, only=only)
    except StopRequestedError as e:
        click.echo("Stopped; the same command goes on from here.", err=True)
        raise SystemExit(128 + e.signal_number) from None
    click.echo((out / "table.md").read_text(encoding="utf-8"))
    for name, reason in result.failed.items():
        click.echo(f"{name} failed: {reason}", err=True)
    click.echo(
        f"Wrote {out / 'table.md'}, .csv and .png: {result.num_finished} of "
        f"{counted(result.num_runs, 'run')} finished."
    )
    if result.failed:
        raise SystemExit(1)
