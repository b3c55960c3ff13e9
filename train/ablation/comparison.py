"""Runs of an ablation side by side: mean and spread per test set, in the paper's layout."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...shared.atomic import replacing
from ...shared.cache.spec import TeacherSpec
from ...shared.terminal import markdown_table
from ..evaluation.protocol import PAPER_GROUP, TOTAL, WEIGHTED, set_order
from .table import AblationTable, run_name


def write_comparison(
    table: AblationTable,
    results: Mapping[str, dict[str, Any] | None],
    out: Path,
    teacher: TeacherSpec,
) -> None:
    """Write table.md, table.csv and table.png to a folder.

    `results` holds ``ablation.json`` of each run by its name; None if there is none yet.
    """
    sets = sorted(
        {name for result in results.values() if result for name in result["sets"]}, key=set_order
    )
    # The paper's Avg, where all its benchmarks are there.
    means = [result["means"] for result in results.values() if result]
    average = PAPER_GROUP if means and all(PAPER_GROUP in some for some in means) else TOTAL
    headers = [*table.columns, *sets, "Avg", "runs"]
    rows, figures = [], []
    for variant in table.variants:
        done = [r for seed in table.seeds if (r := results[run_name(variant.name, seed)])]
        accuracies = [
            [r["sets"][name]["accuracy"] for r in done if name in r["sets"]] for name in sets
        ]
        accuracies.append([r["means"][average][WEIGHTED]["accuracy"] for r in done])
        shown: list[str] = []
        exact: list[str] = []
        for values in accuracies:
            shown.append(" ± ".join(filter(None, _mean_and_spread(values, 2))) or "-")
            exact += _mean_and_spread(values, 4)
        rows.append([*variant.cells, *shown, f"{len(done)}/{len(table.seeds)}"])
        figures.append([variant.name, *variant.cells, *exact, len(done)])
    out.mkdir(parents=True, exist_ok=True)
    untrained = " (RANDOM weights: this tries out the pipeline, not CLIP)" * teacher.is_random
    caption = [
        "Word accuracy in percent: mean and standard deviation over seeds "
        f"{', '.join(map(str, table.seeds))}. Avg: {average}, {WEIGHTED}.",
        f"Teacher {teacher.name}{untrained}.",
    ]
    markdown = markdown_table(rows, headers, len(table.columns))
    text = f"**{table.title}**\n\n{markdown}\n\n{' '.join(caption)}\n"
    with replacing(out / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    with (
        replacing(out / "table.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        spread = [f"{name} {what}" for name in [*sets, "Avg"] for what in ("mean", "std")]
        writer.writerow(["variant", *table.columns, *spread, "runs"])
        writer.writerows(figures)
    with replacing(out / "table.png") as path:
        _draw_table(table.title, caption, headers, rows, len(table.columns), path)


def _mean_and_spread(values: Sequence[float], num_decimals: int) -> tuple[str, str]:
    """Return the mean and the standard deviation, empty where there are too few values."""
    mean = f"{statistics.mean(values):.{num_decimals}f}" if values else ""
    spread = f"{statistics.stdev(values):.{num_decimals}f}" if len(values) > 1 else ""
    return mean, spread


def _draw_table(
    title: str,
    caption: Sequence[str],
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    num_leading: int,
    path: Path,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    axis = figure.subplots()
    axis.set_axis_off()
    table = axis.table(
        cellText=rows, colLabels=headers, edges="horizontal", cellLoc="right", loc="upper left"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.auto_set_column_width(list(range(len(headers))))
    for (row, column), cell in table.get_celld().items():
        cell.set_height(0.32)
        cell.set_linewidth(0.7)
        cell.set_text_props(
            ha="left" if column < num_leading else "right",
            weight="bold" if row == 0 else "normal",
        )
    axis.set_title(title, loc="left", weight="bold", fontsize=11)
    axis.text(0, 0.9 - 0.32 * (len(rows) + 1), "\n".join(caption), va="top", fontsize=7.5)
    figure.savefig(path, dpi=150, bbox_inches="tight", format="png")
