"""Runs of an ablation side by side: mean and spread per test set, in the paper's layout."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ...shared.atomic import replacing
from ...shared.cache.spec import TeacherSpec
from ..evaluation.paired import mcnemar_exact, shown_p_value
from ..evaluation.protocol import PAPER_GROUP, TOTAL, WEIGHTED, set_order, shown_title
from ..evaluation.tables import ShownTable
from .table import AblationTable, run_name

Outcomes = Mapping[tuple[str, Any], bool]
"""Whether a word was read correctly, by test set and picture."""


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """What came of a run."""

    figures: Mapping[str, Any]
    """``ablation.json``."""
    outcomes: Outcomes
    """Of every word; empty if they were not kept."""


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """What the runs of a row learned from."""

    cache: str
    teacher: TeacherSpec

    def __str__(self) -> str:
        random = " (RANDOM weights: this tries out the pipeline, not CLIP)"
        return f"cache {self.cache}, teacher {self.teacher.name}{random * self.teacher.is_random}"


def write_comparison(
    table: AblationTable,
    results: Mapping[str, RunResults | None],
    out: Path,
    sources: Mapping[str, RowSource],
) -> None:
    """Write table.md, table.csv, table.tex and table.png to a folder.

    Args:
        table: What was run.
        results: Of each run by its name; None if there are none yet.
        out: The folder, which is made.
        sources: Of each row by its name.
    """
    done = [
        {
            seed: found
            for seed in table.seeds
            if (found := results[run_name(variant.name, seed)]) is not None
        }
        for variant in table.variants
    ]
    figures = [some.figures for of_row in done for some in of_row.values()]
    sets = sorted({name for some in figures for name in some["sets"]}, key=set_order)
    # The paper's Avg, where all its benchmarks are there.
    has_paper_group = bool(figures) and all(PAPER_GROUP in some["means"] for some in figures)
    average = PAPER_GROUP if has_paper_group else TOTAL
    columns = [*sets, "Avg" if has_paper_group or len(sets) < 2 else f"Avg of {len(sets)} sets"]
    rows, exact_rows = [], []
    for variant, of_row in zip(table.variants, done, strict=True):
        spreads = [_mean_and_spread(values) for values in _accuracies(of_row, sets, average)]
        p_value = None if of_row is done[0] else _p_value(done[0], of_row, average)
        rows.append(
            [
                *variant.cells,
                *(" ± ".join(f"{value:.2f}" for value in some) or "-" for some in spreads),
                "-" if p_value is None else shown_p_value(p_value),
                f"{len(of_row)}/{len(table.seeds)}",
            ]
        )
        exact = [[f"{value:.4f}" for value in some] + [""] * (2 - len(some)) for some in spreads]
        exact_p = "" if p_value is None else f"{p_value:.6g}"
        exact_rows.append([variant.name, *variant.cells, *chain(*exact), exact_p, len(of_row)])
    caption = _caption(table, shown_title(average, len(sets)), sources)
    shown = ShownTable(
        title=table.title,
        headers=[*table.columns, *columns, "p", "runs"],
        rows=rows,
        num_left=len(table.columns),
        notes=" ".join(caption),
    )
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("table.md", str(replace(shown, title=f"**{table.title}**"))),
        ("table.tex", shown.formatted("latex")),
    ):
        with replacing(out / name) as path:
            path.write_text(f"{text}\n", encoding="utf-8")
    with (
        replacing(out / "table.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        spread = [f"{name} {what}" for name in columns for what in ("mean", "std")]
        writer.writerow(["variant", *table.columns, *spread, "p", "runs"])
        writer.writerows(exact_rows)
    with replacing(out / "table.png") as path:
        _draw_table(table.title, caption, shown, path)


def _accuracies(
    of_row: Mapping[int, RunResults], sets: Sequence[str], average: str
) -> Iterator[list[float]]:
    """Yield those of the runs of a row on each test set, then on the average."""
    figures = [run.figures for run in of_row.values()]
    for name in sets:
        yield [some["sets"][name]["accuracy"] for some in figures if name in some["sets"]]
    yield [some["means"][average][WEIGHTED]["accuracy"] for some in figures]


def combine_p_values(p_values: Sequence[float]) -> float:
    """Return one p value for several tests, however much they depend on each other.

    Twice the median (Meinshausen, Meier and Buehlmann, 2009): runs of other seeds read the same
    words, so their counts must not be added up. That of one test is its own.
    """
    return p_values[0] if len(p_values) == 1 else min(1.0, 2 * statistics.median(p_values))


def _p_value(
    of_first: Mapping[int, RunResults], of_row: Mapping[int, RunResults], average: str
) -> float | None:
    """Return that of McNemar's test of a row against the first one, on the words of the average.

    Runs of a seed are compared. None if there are no two that kept what they read.
    """
    p_values = []
    for seed, run in of_row.items():
        first = of_first.get(seed)
        if first is None or not (first.outcomes and run.outcomes):
            continue
        sets = set(first.figures["means"][average]["sets"])
        pairs = [
            (first.outcomes[key], is_right)
            for key, is_right in run.outcomes.items()
            if key[0] in sets and key in first.outcomes
        ]
        p_values.append(mcnemar_exact(pairs.count((True, False)), pairs.count((False, True))))
    return combine_p_values(p_values) if p_values else None


def _caption(table: AblationTable, average: str, sources: Mapping[str, RowSource]) -> list[str]:
    """Return the lines below the table: what its figures are, and what its runs were made from."""
    over_seeds = "; over seeds twice the median" if len(table.seeds) > 1 else ""
    lines = [
        "Word accuracy in percent: mean and standard deviation over seeds "
        f"{', '.join(map(str, table.seeds))}. Avg: {average}, {WEIGHTED}.",
        "p: McNemar's exact test on the words of Avg, against the first row's run of the same "
        f"seed{over_seeds}.",
    ]
    if table.overrides:
        lines.append(f"Set for every run: {shown_settings(table.overrides)}.")
    rows_of: dict[str, list[str]] = {}
    for name, source in sources.items():
        rows_of.setdefault(str(source), []).append(name)
    for learned_from, names in rows_of.items():
        of_rows = f" ({', '.join(names)})" if len(rows_of) > 1 else ""
        lines.append(f"Learned from {learned_from}{of_rows}.")
    return lines


def shown_settings(settings: Mapping[str, Any]) -> str:
    """Return settings in a line, as ``--set`` takes each of them."""
    return ", ".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in settings.items()
    )


def _mean_and_spread(values: Sequence[float]) -> list[float]:
    """Return the mean and the standard deviation, as far as there are enough values."""
    return [
        *([statistics.mean(values)] if values else []),
        *([statistics.stdev(values)] if len(values) > 1 else []),
    ]


def _draw_table(title: str, caption: Sequence[str], shown: ShownTable, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    axis = figure.subplots()
    axis.set_axis_off()
    table = axis.table(
        cellText=shown.rows,
        colLabels=shown.headers,
        edges="horizontal",
        cellLoc="right",
        loc="upper left",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.auto_set_column_width(list(range(len(shown.headers))))
    for (row, column), cell in table.get_celld().items():
        cell.set_height(0.32)
        cell.set_linewidth(0.7)
        cell.set_text_props(
            ha="left" if column < shown.num_left else "right",
            weight="bold" if row == 0 else "normal",
        )
    axis.set_title(title, loc="left", weight="bold", fontsize=11)
    axis.text(0, 0.9 - 0.32 * (len(shown.rows) + 1), "\n".join(caption), va="top", fontsize=7.5)
    figure.savefig(path, dpi=150, bbox_inches="tight", format="png")
