"""Runs of an ablation side by side: mean and spread per test set, in the paper's layout."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...shared.atomic import replacing
from ...shared.cache.spec import TeacherSpec
from ..evaluation.protocol import BENCHMARK_NAMES, PAPER_GROUP, TOTAL, WEIGHTED, benchmark_of
from ..evaluation.tables import as_markdown
from .table import AblationTable


def write_comparison(
    table: AblationTable,
    results: Mapping[str, dict[str, Any] | None],
    out: Path,
    teacher: TeacherSpec,
) -> None:
    """Write table.md, table.csv and table.png.

    Args:
        table: What was run.
        results: Of each run by name, as `write_results` writes them; None if there are none yet.
        out: Folder to write them to.
        teacher: Whose features the students followed.
    """
    sets = sorted(
        {name for result in results.values() if result for name in result["sets"]}, key=_set_order
    )
    # The paper's Avg, where all its benchmarks are there.
    means = [result["means"] for result in results.values() if result]
    average = PAPER_GROUP if means and all(PAPER_GROUP in some for some in means) else TOTAL
    headers = [*table.columns, *sets, "Avg", "runs"]
    rows, figures = [], []
    for variant in table.variants:
        done = [
            result
            for seed in table.seeds
            if (result := results[variant.run_name(seed)]) is not None
        ]
        accuracies = [
            [r["sets"][name]["accuracy"] for r in done if name in r["sets"]] for name in sets
        ]
        accuracies.append([r["means"][average][WEIGHTED]["accuracy"] for r in done])
        counted = f"{len(done)}/{len(table.seeds)}"
        rows.append([*variant.cells, *map(_mean_and_spread, accuracies), counted])
        figures.append([variant.name, *variant.cells, *_plain_figures(accuracies), len(done)])
    out.mkdir(parents=True, exist_ok=True)
    untrained = " (RANDOM weights: this tries out the pipeline, not CLIP)" * teacher.is_random
    caption = [
        "Word accuracy in percent: mean and standard deviation over seeds "
        f"{', '.join(map(str, table.seeds))}. Avg: {average}, {WEIGHTED}.",
        f"Teacher {teacher.name}{untrained}.",
    ]
    markdown = as_markdown(headers, rows, len(table.columns))
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


def _set_order(name: str) -> tuple[int, str]:
    """Order benchmarks as the papers' columns, then other sets by name."""
    benchmark = benchmark_of(name)
    return len(BENCHMARK_NAMES) if benchmark is None else BENCHMARK_NAMES.index(benchmark), name


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
