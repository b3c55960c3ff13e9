"""`clipocr ablate`: a table of runs over one cache, trained, evaluated and set side by side.

    table ──► one run per variant and seed ──► ablation.json of each ──► table.md, .csv, .png

Every run is an ordinary run folder below the output, so it can be resumed, evaluated and read from
like any other. Runs that are finished are left alone, and so are results that are still of the
checkpoint, the test sets and the charset that count.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import statistics
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from ..shared.cache import FeatureCache
from ..shared.errors import TrainingError, UsageError
from ..shared.schema import TeacherSpec
from .checkpoint import find_checkpoint, load_student
from .config import TrainConfig, TrainPlace
from .evaluate import TestSet, evaluate, open_test_sets, write_results
from .record import RUN_NAME, read_record, require_same_run
from .run import train
from .settings import train_config
from .targets import open_cache, require_targets

TABLE_NAMES = ("table.md", "table.csv", "table.png")
"""What an ablation ends with."""

_RESULTS_NAME = "ablation.json"
"""In each run's folder. Not eval.json, which people write as they like."""
_NAME = re.compile(r"[\w.+-]*\w")
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

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UsageError(f"seeds are {self.seeds}, expected different whole numbers")
        if any("seed" in s for s in (self.settings, *(v.settings for v in self.variants))):
            raise UsageError("seed is no setting of a table; its runs take each of its seeds")


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
    columns = tuple(str(column) for column in _listed("columns", data["columns"]))
    variants = []
    for number, entry in enumerate(_listed("variants", data["variants"]), start=1):
        where = f"variant {number}"
        _require_keys(where, entry, {"name", "cells"}, {"settings"})
        cells = tuple(str(cell) for cell in _listed(f"{where}: cells", entry["cells"]))
        if len(cells) != len(columns):
            raise UsageError(f"{where} has {len(cells)} cells for {len(columns)} columns")
        name = str(entry["name"])
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{where} is named {name!r}, expected letters, digits, '.', '_', '+', '-': "
                "it names a folder"
            )
        variants.append(Variant(name=name, cells=cells, settings=_settings(where, entry)))
    names = [variant.name for variant in variants]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"variants are named {', '.join(names) or 'nothing'}; names must differ")
    return AblationTable(
        title=str(data["title"]),
        columns=columns,
        settings=_settings("the table", data),
        seeds=tuple(_listed("seeds", data.get("seeds", [0, 1, 2]))),
        variants=tuple(variants),
    )


def _listed(where: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{where} is {value!r}, expected a list")
    return value


def _settings(where: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = entry.get("settings", {})
    if not isinstance(settings, dict):
        raise UsageError(f"{where}: settings is {settings!r}, expected NAME = VALUE pairs")
    return settings


def _require_keys(where: str, data: Any, needed: set[str], optional: set[str]) -> None:
    if not isinstance(data, dict):
        raise UsageError(f"{where} is {data!r}, expected {', '.join(sorted(needed))}")
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
        CacheError: the cache lacks what a variant follows.
        DataError: the test data cannot be used.
        StopRequestedError: a signal ended it; the same call goes on.
    """
    cache = open_cache(place)
    # Everything first: what is wrong in the last row must not wait for the first run's end.
    runs, test_sets = {}, {}
    for variant in table.variants:
        for seed in table.seeds:
            settings = {**table.settings, **variant.settings, "seed": seed}
            config = runs[f"{variant.name}-seed{seed}"] = train_config(settings, place.device)
            require_targets(config, cache)
            reads = (config.charset, config.student.max_label_length)
            if reads not in test_sets:
                test_sets[reads] = open_test_sets(test_roots, *reads)
    failed: dict[str, str] = {}
    mine = [name for i, name in enumerate(runs) if i % only[1] == only[0]]
    try:
        for number, name in enumerate(mine, start=1):
            tqdm.write(f"run {number} of {len(mine)}: {name}", file=sys.stderr)
            config = runs[name]
            run_place = replace(place, out=place.out / name, val_charset=config.charset)
            try:
                _train_if_unfinished(config, run_place, cache)
            except TrainingError as e:
                failed[name] = f"{e}. To try it again remove {run_place.out}"
                continue
            reads = (config.charset, config.student.max_label_length)
            _evaluate_if_needed(run_place, test_sets[reads])
    finally:
        results = {name: _read_results(place.out / name) for name in runs}
        _write_table(table, results, place.out, cache.spec.teacher)
    return AblationResult(
        num_runs=len(runs),
        num_finished=sum(result is not None for result in results.values()),
        failed=failed,
    )


def _train_if_unfinished(config: TrainConfig, place: TrainPlace, cache: FeatureCache) -> None:
    has_begun = (place.out / RUN_NAME).exists()
    if has_begun:
        record = read_record(place.out)
        require_same_run(
            place.out,
            had={k: record[k] for k in ("config", "validation")} | {"cache": record["cache"]["id"]},
            wanted={
                "config": config.to_json(),
                "validation": [str(root) for root in place.val_data],
                "cache": cache.manifest.cache_id,
            },
        )
        if len(record["history"]) == config.epochs:
            return
    train(config, place, resume=has_begun)


def _evaluate_if_needed(place: TrainPlace, test_sets: Sequence[TestSet]) -> None:
    checkpoint = find_checkpoint(place.out)
    # What the results are of: another checkpoint, label, picture size or charset changes it.
    of = {
        "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "charset": place.val_charset.characters,
        "sets": {
            test_set.name: hashlib.sha256(
                repr((test_set.labels, _num_bytes(test_set))).encode()
            ).hexdigest()
            for test_set in test_sets
        },
    }
    path = place.out / _RESULTS_NAME
    if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("of") == of:
        return
    student = load_student(checkpoint, place.device)
    results = evaluate(student, test_sets)
    write_results(path, results, checkpoint=checkpoint, charset=place.val_charset, of=of)


def _num_bytes(test_set: TestSet) -> int:
    return (test_set.lmdb.path / "data.mdb").stat().st_size


def _read_results(run: Path) -> dict[str, Any] | None:
    path = run / _RESULTS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_table(
    table: AblationTable,
    results: Mapping[str, dict[str, Any] | None],
    out: Path,
    teacher: TeacherSpec,
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
    untrained = " (RANDOM weights: this tries out the pipeline, not CLIP)" * teacher.is_random
    caption = [
        "Word accuracy in percent: mean and standard deviation over seeds "
        f"{', '.join(map(str, table.seeds))}. Avg is weighted by samples.",
        f"Teacher {teacher.name}{untrained}.",
    ]
    markdown = tabulate(
        rows,
        headers=headers,
        tablefmt="github",
        colalign=[*["left"] * len(table.columns), *["right"] * (len(headers) - len(table.columns))],
        disable_numparse=True,
    )
    text = f"**{table.title}**\n\n{markdown}\n\n{' '.join(caption)}\n"
    with _replacing(out / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    with (
        _replacing(out / "table.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        spread = [f"{name} {what}" for name in [*sets, "Avg"] for what in ("mean", "std")]
        writer.writerow(["variant", *table.columns, *spread, "runs"])
        writer.writerows(figures)
    with _replacing(out / "table.png") as path:
        _draw_table(table.title, caption, headers, rows, len(table.columns), path)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write that then takes the place of `path`: shares may end together."""
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
    caption: Sequence[str],
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
    figure = Figure(figsize=(0.1 * sum(widths) + 0.6, 0.32 * len(rows) + 1.5))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axis.set_axis_off()
    axis.set_xlim(0, sum(widths))
    axis.set_ylim(len(rows) + 2.6, -1.4)
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
    for i, line in enumerate(caption):
        axis.text(0, len(rows) + 1.3 + 0.6 * i, line, fontsize=7.5, color="0.35")
    figure.savefig(path, dpi=150, bbox_inches="tight", format="png")
