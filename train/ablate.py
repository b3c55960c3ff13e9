"""`clipocr ablate`: a table of runs over one cache, trained, evaluated and set side by side.

    table ──► one run per variant and seed ──► eval.json of each ──► table.md, .csv, .png

Every run is an ordinary run folder below the output, so it can be resumed, evaluated and read from
like any other. Runs that are finished are left alone.
"""

from __future__ import annotations

import csv
import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from ..shared.errors import TrainingError, UsageError
from .checkpoint import find_checkpoint, load_student
from .config import TrainConfig, TrainPlace
from .evaluate import TestSet, evaluate, open_test_sets, write_results
from .record import RUN_NAME, read_record
from .run import train
from .settings import train_config

TABLE_NAMES = ("table.md", "table.csv", "table.png")
"""What an ablation ends with."""

_EVAL_NAME = "eval.json"
_PAPER_SETS = ("IIIT5k", "SVT", "IC13_857", "IC15_1811", "SVTP", "CUTE80")
"""Order of the paper's columns, by folder name; other sets follow by theirs."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a table."""

    name: str
    """Names the run folders."""
    cells: tuple[str, ...]
    """What stands in the row's leading columns."""
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AblationTable:
    """What to run, as a TOML file says it."""

    title: str
    columns: tuple[str, ...]
    """Leading columns."""
    settings: Mapping[str, Any]
    """Of every run, by the names of `train_config`."""
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True, kw_only=True)
class AblationResult:
    """How far a table came."""

    num_runs: int
    num_finished: int
    """Runs of all variants and seeds that are trained and evaluated, by whatever process."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Run -> why this process gave it up."""


def shipped_tables() -> dict[str, str]:
    """Return the tables that come with clipocr: name to TOML text."""
    folder = resources.files(__package__) / "tables"
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".toml")
    }


def load_table(name_or_file: str) -> AblationTable:
    """Return a shipped table by name, or the one in a TOML file.

    Raises:
        UsageError: there is none, or it does not say what a table has to.
    """
    shipped = shipped_tables()
    if name_or_file in shipped:
        text = shipped[name_or_file]
    elif Path(name_or_file).is_file():
        text = Path(name_or_file).read_text(encoding="utf-8")
    else:
        raise UsageError(
            f"{name_or_file} is neither a file nor a table that comes with clipocr; "
            f"expected a TOML file or one of {', '.join(shipped)}"
        )
    try:
        return _parse_table(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, UsageError) as e:
        raise UsageError(f"table {name_or_file}: {e}") from None


def _parse_table(data: Mapping[str, Any]) -> AblationTable:
    _require_keys("the table", data, {"title", "columns", "variants"}, {"settings", "seeds"})
    columns = tuple(str(column) for column in data["columns"])
    variants: list[Variant] = []
    for entry in data["variants"]:
        where = f"variant {entry.get('name', len(variants) + 1)!r}"
        _require_keys(where, entry, {"name", "cells"}, {"settings"})
        cells = tuple(str(cell) for cell in entry["cells"])
        if len(cells) != len(columns):
            raise UsageError(f"{where} has {len(cells)} cells for {len(columns)} columns")
        variants.append(
            Variant(name=entry["name"], cells=cells, settings=entry.get("settings", {}))
        )
    names = [variant.name for variant in variants]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"variants are named {', '.join(names) or 'nothing'}; names must differ")
    seeds = tuple(data.get("seeds", (0, 1, 2)))
    return AblationTable(
        title=data["title"],
        columns=columns,
        settings=data.get("settings", {}),
        seeds=seeds,
        variants=tuple(variants),
    )


def _require_keys(
    where: str, data: Mapping[str, Any], needed: set[str], optional: set[str]
) -> None:
    missing, unknown = sorted(needed - set(data)), sorted(set(data) - needed - optional)
    if missing or unknown:
        raise UsageError(
            f"{where} lacks {', '.join(missing) or 'nothing'} and has unknown "
            f"{', '.join(unknown) or 'nothing'}; expected {', '.join(sorted(needed))}"
            f" and perhaps {', '.join(sorted(optional))}"
        )


def ablate(
    table: AblationTable,
    place: TrainPlace,
    test_roots: Sequence[Path],
    *,
    only: tuple[int, int] = (0, 1),
) -> AblationResult:
    """Train and evaluate the runs of a table that are not finished, then draw the table.

    Args:
        table: What to run.
        place: Cache, device, and as `out` the folder of all runs and of the table.
        test_roots: Roots of the test LMDBs.
        only: (i, n): of all runs take those whose number leaves i modulo n.

    Raises:
        UsageError: a setting is not possible, or a run was begun with others.
        StopRequestedError: a signal ended it; the same call goes on.
    """
    # Every config first: a wrong setting in the last row must not wait for the first run's end.
    runs = {
        f"{variant.name}-seed{seed}": train_config(
            {**table.settings, **variant.settings, "seed": seed}, place.device
        )
        for variant in table.variants
        for seed in table.seeds
    }
    failed: dict[str, str] = {}
    mine = [name for i, name in enumerate(runs) if i % only[1] == only[0]]
    for number, name in enumerate(mine, start=1):
        tqdm.write(f"run {number} of {len(mine)}: {name}")
        config = runs[name]
        test_sets = open_test_sets(test_roots, config.charset, config.student.max_label_length)
        run_place = replace(place, out=place.out / name, val_charset=config.charset)
        try:
            _train_if_unfinished(config, run_place)
        except TrainingError as e:
            failed[name] = str(e)
            continue
        _evaluate_if_needed(run_place, test_sets)
    results = {name: _read_results(place.out / name) for name in runs}
    _write_table(table, results, place.out)
    return AblationResult(
        num_runs=len(runs),
        num_finished=sum(result is not None for result in results.values()),
        failed=failed,
    )


def _train_if_unfinished(config: TrainConfig, place: TrainPlace) -> None:
    record_path = place.out / RUN_NAME
    if record_path.exists():
        record = read_record(place.out)
        if len(record["history"]) == config.epochs and record["config"] == config.to_json():
            return
    # A run with another config is refused by name when it is resumed.
    train(config, place, resume=record_path.exists())


def _evaluate_if_needed(place: TrainPlace, test_sets: Sequence[TestSet]) -> None:
    sizes = {test_set.name: len(test_set.labels) for test_set in test_sets}
    known = _read_results(place.out)
    checkpoint = find_checkpoint(place.out)
    path = place.out / _EVAL_NAME
    if known is not None and path.stat().st_mtime >= checkpoint.stat().st_mtime:
        had = {name: figures["num_samples"] for name, figures in known["sets"].items()}
        if had == sizes:
            return
    student = load_student(checkpoint, place.device)
    results = evaluate(student, test_sets)
    write_results(path, results, checkpoint=checkpoint, charset=place.val_charset)


def _read_results(run: Path) -> dict[str, Any] | None:
    path = run / _EVAL_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_table(
    table: AblationTable, results: Mapping[str, dict[str, Any] | None], out: Path
) -> None:
    sets = sorted(
        {name for result in results.values() if result for name in result["sets"]}, key=_set_order
    )
    headers = [*table.columns, *sets, "Avg", "runs"]
    rows, figures = [], []
    for variant in table.variants:
        done = [
            result
            for seed in table.seeds
            if (result := results[f"{variant.name}-seed{seed}"]) is not None
        ]
        accuracies = [
            [r["sets"][name]["accuracy"] for r in done if name in r["sets"]] for name in sets
        ]
        accuracies.append([r["total_weighted_by_samples"]["accuracy"] for r in done])
        counted = f"{len(done)}/{len(table.seeds)}"
        rows.append([*variant.cells, *map(_mean_and_spread, accuracies), counted])
        figures.append([variant.name, *variant.cells, *_plain_figures(accuracies), len(done)])
    out.mkdir(parents=True, exist_ok=True)
    caption = (
        "Word accuracy in percent: mean and standard deviation over seeds "
        f"{', '.join(map(str, table.seeds))}. Avg is weighted by samples."
    )
    markdown = tabulate(
        rows,
        headers=headers,
        tablefmt="github",
        colalign=[*["left"] * len(table.columns), *["right"] * (len(headers) - len(table.columns))],
        disable_numparse=True,
    )
    (out / "table.md").write_text(
        f"**{table.title}**\n\n{markdown}\n\n{caption}\n", encoding="utf-8"
    )
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        spread = [f"{name} {what}" for name in [*sets, "Avg"] for what in ("mean", "std")]
        writer.writerow(["variant", *table.columns, *spread, "runs"])
        writer.writerows(figures)
    _draw_table(table.title, caption, headers, rows, len(table.columns), out / "table.png")


def _set_order(name: str) -> tuple[int, str]:
    folder = name.rpartition("/")[2].removesuffix(".lmdb")
    known = [i for i, paper_set in enumerate(_PAPER_SETS) if paper_set.lower() == folder.lower()]
    return (known or [len(_PAPER_SETS)])[0], name


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _plain_figures(accuracies: Sequence[Sequence[float]]) -> list[str]:
    figures = []
    for values in accuracies:
        figures.append(f"{statistics.mean(values):.4f}" if values else "")
        figures.append(f"{statistics.stdev(values):.4f}" if len(values) > 1 else "")
    return figures


def _draw_table(
    title: str,
    caption: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    num_leading: int,
    path: Path,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widths = [
        max(len(str(row[column])) for row in [headers, *rows]) + 2 for column in range(len(headers))
    ]
    figure = Figure(figsize=(0.1 * sum(widths) + 0.6, 0.32 * len(rows) + 1.3))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axis.set_axis_off()
    axis.set_xlim(0, sum(widths))
    axis.set_ylim(len(rows) + 2.2, -1.4)
    axis.text(0, -0.9, title, weight="bold", fontsize=11)
    starts = [sum(widths[:column]) for column in range(len(headers))]
    for y, row in enumerate([headers, *rows]):
        for column, cell in enumerate(row):
            is_leading = column < num_leading
            axis.text(
                starts[column] + (1 if is_leading else widths[column] - 1),
                y + (0 if y == 0 else 0.15),
                cell,
                ha="left" if is_leading else "right",
                va="center",
                fontsize=9,
                weight="bold" if y == 0 else "normal",
            )
    for line_y, width in ((-0.5, 1.2), (0.5, 0.7), (len(rows) + 0.65, 1.2)):
        axis.axhline(line_y, color="black", linewidth=width)
    axis.text(0, len(rows) + 1.4, caption, fontsize=7.5, color="0.35")
    figure.savefig(path, dpi=150, bbox_inches="tight")
