"""The commands ``clipocr train`` and ``clipocr ablate``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...shared.errors import UsageError
from ...shared.help import GroupedCommand, GroupedOption
from ...shared.options import FOLDER, PATH, Options, completing, option, takes
from ...shared.terminal import counted, goes_on, markdown_table, warn_of_random_teacher
from ..evaluation.options import TEST_SETS_HELP
from ..loop.config import RECIPES, Presets, TrainConfig, TrainPlace, method_of_runs
from ..methods import DEFAULT_METHOD, find_method, method_names
from ..methods.base import Method

if TYPE_CHECKING:
    from ..ablation.runs import PlannedRun
    from ..loop.run import TrainSummary


class _TrainCommand(GroupedCommand):
    """``clipocr train``, whose options depend on ``--method``.

    As it stands it has those of the default method. A command line that names another one is read
    by a command with the options of that one.
    """

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the command line by the options of the method that it, or a run it names, names."""
        named = _first_look(args)
        like = named["resume"] or named["config"]
        # Help is given even if there is no such run.
        saved = _read_saved(Path(like)) if like and not _HELP_FLAGS & {*args} else {}
        name = named["method"] or saved.get("method", DEFAULT_METHOD)
        try:
            command = _train_command(method_of_runs(name))
        except UsageError as e:
            raise click.BadParameter(str(e), param_hint="--method") from e
        for param in command.params:
            if param.name in saved or (named["resume"] and param.name == "out"):
                param.required = False
        extra.setdefault("obj", saved)
        return click.Command.make_context(command, info_name, args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in groups, then the methods."""
        super().format_options(ctx, formatter)
        with formatter.section("Methods"):
            formatter.write_dl([(name, _summary(name)) for name in method_names()])


def _summary(name: str) -> str:
    try:
        return find_method(name).summary
    except UsageError as e:
        return f"({e})"


def _first_look(args: list[str]) -> dict[str, str | None]:
    """Return the options that decide what others there are, whatever else a command line says."""
    finder = click.Command(
        "train",
        params=[click.Option([f"--{name}"]) for name in ("method", "resume", "config")],
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )
    return finder.make_context("train", list(args), resilient_parsing=True).params


def _read_saved(like: Path) -> dict[str, Any]:
    """Return the options of a run that a command line goes on with, or begins another one like."""
    from ..loop.record import read_options

    return read_options(like) if like.exists() else {}  # Click says that it does not.


def _train_command(method: type[Method]) -> click.Command:
    """Return ``clipocr train`` with the options of a method."""
    decorators: list[Callable[..., Any]] = [
        takes(TrainPlace),
        click.option(
            "--init",
            cls=GroupedOption,
            group=_BEGINNING,
            type=PATH,
            show_default="random weights",
            help="Run or checkpoint to take the first weights from, for fine-tuning. Its charset "
            "may differ.",
        ),
        click.option(
            "--resume",
            cls=GroupedOption,
            group=_BEGINNING,
            metavar="RUN",
            type=FOLDER,
            help="Run to continue where it stopped, with its own options. --epochs may be raised.",
        ),
        click.option(
            "--config",
            cls=GroupedOption,
            group=_BEGINNING,
            metavar="RUN.JSON",
            type=PATH,
            help="Run to copy the options of (its run.json or its folder), for a new run. Options "
            "on the command line override them.",
        ),
        takes(Presets),
        takes(TrainConfig, method.recipe()),
        takes(method),
    ]
    command: Callable[..., Any] = _train
    for decorate in reversed(decorators):
        command = decorate(command)
    made = click.command("train", cls=_TrainCommand, help=_HELP)(command)
    for param in made.params:
        if isinstance(param, GroupedOption) and param.name in method.names():
            param.group = param.group or f"Method {method.name}"
    return made


_BEGINNING = "Starting point"
_HELP_FLAGS = {"-h", "--help"}
_HELP = """Train a recogniser from a feature cache.

CLIP itself is loaded only by methods whose recogniser contains it.

On Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, a run saves a checkpoint and stops. --resume RUN then
continues it as if it had never stopped. To share each batch between GPUs, use: torchrun
--nproc-per-node N -m clipocr train ...

\b
Example:
  clipocr train --cache mjst.cache --out run --val-data data/val
  clipocr train --resume run"""


@click.pass_obj
def _train(
    saved: Mapping[str, Any],
    given: Mapping[str, Any],
    init: Path | None,
    resume: Path | None,
    config: Path | None,
) -> None:
    from ..loop.processes import Processes
    from ..loop.run import train as train_run

    if resume is not None and (config is not None or "out" in given):
        raise click.UsageError(
            "--resume says which run it is, and the run what its options are; leave "
            f"{'--config' if config is not None else '--out'} out"
        )
    # What is said now goes before what the other run says, and a recipe is said, too.
    recipe = RECIPES[given["recipe"]] if "recipe" in given else {}
    method = given.get("method", saved.get("method", DEFAULT_METHOD))
    known = {*TrainPlace.names(), *TrainConfig.known_names(method)} - {*recipe}
    of_run = {name: value for name, value in saved.items() if name in known}
    values = {"method": method, **of_run, **given}
    if resume is not None:
        values["out"] = resume
    elif init is None and "init" in saved:
        init = Path(saved["init"])
    of_place = TrainPlace.own(values)
    place = TrainPlace.from_values(of_place, command=tuple(sys.argv))
    summary = train_run(
        TrainConfig.from_values({k: v for k, v in values.items() if k not in of_place}),
        place,
        resume=resume is not None,
        init=init,
    )
    if Processes.of_torchrun().is_first:
        _report_training(place.out, summary)


train = _train_command(method_of_runs(DEFAULT_METHOD))


def _report_training(out: Path, summary: TrainSummary) -> None:
    from ..loop.curves import draw_curves

    warn_of_random_teacher(summary.teacher_is_random, "of this cache")
    if summary.num_skipped:
        click.echo(
            f"Note: {counted(summary.num_skipped, 'step')} had no finite gradient and did nothing.",
            err=True,
        )
    draw_curves(out)
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


def _shipped() -> Iterable[str]:
    from ..ablation.table import shipped_tables

    return shipped_tables()


def _parse_share(_ctx: click.Context, _option: click.Parameter, value: str) -> tuple[int, int]:
    """Read I/N, I counted from 1; return (I - 1, N)."""
    index, _, count = value.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise click.BadParameter(f"{value!r} is not I/N with I from 1 to N, such as 1/4")
    return int(index) - 1, int(count)


@dataclass(frozen=True, kw_only=True)
class _Runs(Options):
    """What ``clipocr ablate`` does with a table."""

    data: tuple[Path, ...] = option(help=TEST_SETS_HELP, metavar="ROOT", type=FOLDER)
    seeds: tuple[int, ...] | None = option(
        None, help="Seeds to train each row with, such as 0,1,2.", default_text="the table's"
    )
    rows: tuple[str, ...] | None = option(
        None, help="Rows of the table to train, by name.", default_text="all"
    )


@click.command()
@click.argument("table_name", metavar="TABLE", shell_complete=completing(_shipped))
@takes(TrainPlace)
@takes(_Runs)
@click.option(
    "--set",
    "overrides",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_parse_settings,
    help="Setting for every run, such as epochs=3 or charset=94, over the table's. May be given "
    "more than once.",
)
@click.option(
    "--dry-run",
    "is_dry_run",
    is_flag=True,
    help="Check every run, and print its settings and what is left to do. Write nothing.",
)
@click.option(
    "--only",
    metavar="I/N",
    default="1/1",
    callback=_parse_share,
    show_default=True,
    help="Train only share I of N of the runs, for one process per GPU.",
)
@goes_on
def ablate(
    table_name: str,
    given: Mapping[str, Any],
    overrides: Mapping[str, Any],
    only: tuple[int, int],
    is_dry_run: bool,
) -> None:
    """Train and evaluate every run of an ablation table.

    TABLE is a TOML file, or a table that comes with clipocr: table1 to table7, table12, dptr,
    clip4str. Run the same command again to continue: finished runs are skipped. The folder --out
    gets a folder for each row and seed, and the results as table.md, .csv, .tex and .png.

    \b
    Example:
      clipocr ablate table1 --cache mjst.cache --out table1 --data data/test
      clipocr ablate table2 --cache words.cache --out t2 --data data/test --set student=tiny
      clipocr ablate mine.toml --cache words.cache --out mine --data data/test --dry-run
    """
    from ..ablation.runs import ablate as ablate_table
    from ..ablation.runs import plan
    from ..ablation.table import load_table
    from ..loop.processes import Processes

    if Processes.of_torchrun().world_size > 1:
        raise click.UsageError("ablate is one process per GPU, each with its share: --only I/N")
    place = TrainPlace.from_values(TrainPlace.own(given), command=tuple(sys.argv))
    table = load_table(table_name)
    if "rows" in given:
        table = table.with_rows(given["rows"])
    table = replace(table.with_overrides(overrides), seeds=given.get("seeds", table.seeds))
    if is_dry_run:
        _print_plan(plan(table, place, given["data"], only=only))
        return
    result = ablate_table(table, place, given["data"], only=only)
    click.echo((place.out / "table.md").read_text(encoding="utf-8"))
    for name, reason in result.failed.items():
        click.echo(f"{name} failed: {reason}", err=True)
    click.echo(
        f"Wrote {place.out / 'table.md'}, .csv, .tex and .png: {result.num_finished} of "
        f"{counted(result.num_runs, 'run')} finished."
    )
    if result.failed:
        raise SystemExit(1)


def _print_plan(runs: Sequence[PlannedRun]) -> None:
    from ..ablation.comparison import shown_settings

    rows = [
        [run.name, run.state, run.cache, run.init or "-", shown_settings(run.settings)]
        for run in runs
    ]
    headers = ["run", "state", "cache", "begins with", "settings"]
    click.echo(markdown_table(rows, headers, len(headers)) + "\n")
    counts = Counter(run.state.partition(" after")[0] for run in runs)
    click.echo(
        f"{counted(len(runs), 'run')}: {counts['train']:,} to train, {counts['go on']:,} to go on "
        f"with, {counts['evaluate']:,} to evaluate, {counts['finished']:,} finished. Nothing was "
        "written."
    )
