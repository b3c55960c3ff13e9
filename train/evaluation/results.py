"""What an evaluation leaves: a table, ``eval.json`` of figures, and every sample's outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ...shared.atomic import replacing
from ...shared.charset import Charset
from ...shared.terminal import counted
from .evaluate import SetResult
from .metrics import Figures, plain_mean, weighted_mean
from .protocol import Group, benchmark_of, find_groups

WEIGHTED = "weighted by samples"
PLAIN = "plain mean of sets"


def groups_of(results: Sequence[SetResult]) -> tuple[list[Group], list[str]]:
    """Return the groups that some results make up, and what is to be said of them."""
    return find_groups(
        {r.name: (len(r.samples), len(r.samples) + r.num_unlabelled) for r in results}
    )


def remarks_on(runs: Sequence[Sequence[SetResult]], charset: Charset) -> list[str]:
    """Return what a reader of some students' figures must know."""
    remarks = groups_of(runs[0])[1]
    for results in runs:
        for result in results:
            if result.num_broken or result.num_unlabelled:
                remarks.append(
                    f"{result.name}: {counted(result.num_broken, 'broken image')} counted as "
                    f"wrong, {counted(result.num_unlabelled, 'sample')} left out (no label of "
                    f"charset {charset.name}, or too long)"
                )
    return list(dict.fromkeys(remarks))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text, as it is shown; converted to `str`, it is Markdown."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: str = ""
    """What its columns are, where that is not plain."""

    def __str__(self) -> str:
        markdown = as_markdown(self.headers, self.rows)
        return f"{markdown}\n\n{self.notes}" if self.notes else markdown


def results_as_table(results: Sequence[SetResult]) -> Table:
    """Return the results: each set, then both means of each group, which are one of one set."""
    rows = [(result.name, result.counts.figures) for result in results]
    for group in groups_of(results)[0]:
        counts = [result.counts for result in results if result.name in group.set_names]
        rows.append((f"{group.title}, {WEIGHTED}", weighted_mean(counts)))
        if len(counts) > 1:
            rows.append((f"{group.title}, {PLAIN}", plain_mean(counts)))
    headers = ["set", "samples", "accuracy", "1-NED", "confidence", "label length"]
    return Table(headers=headers, rows=[[name, *_cells(figures)] for name, figures in rows])


def as_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: names to the left, figures to the right."""
    return tabulate(
        rows,
        headers=headers,
        tablefmt="github",
        colalign=("left", *["right"] * (len(headers) - 1)),
        disable_numparse=True,
    )


def results_as_json(results: Sequence[SetResult], *, charset: Charset) -> dict[str, Any]:
    """Return the results with all their figures, percentages as on the screen but not rounded."""
    groups, remarks = groups_of(results)
    by_name = {result.name: result.counts for result in results}
    return {
        "charset": charset.name,
        "sets": {
            result.name: result.counts.figures.to_json()
            | {
                "num_correct": result.counts.num_correct,
                "num_broken": result.num_broken,
                "num_unlabelled": result.num_unlabelled,
                "benchmark": benchmark_of(result.name),
            }
            for result in results
        },
        "means": {
            group.title: {
                "sets": list(group.set_names),
                WEIGHTED: weighted_mean([by_name[name] for name in group.set_names]).to_json(),
                PLAIN: plain_mean([by_name[name] for name in group.set_names]).to_json(),
            }
            for group in groups
        },
        "remarks": remarks,
    }


def write_results(
    path: Path,
    results: Sequence[SetResult],
    *,
    checkpoint: Path,
    charset: Charset,
    of: Mapping[str, object] | None = None,
) -> None:
    """Write the figures of one checkpoint as JSON, and perhaps digests of what they are of."""
    record = {"checkpoint": str(checkpoint), **results_as_json(results, charset=charset)}
    if of is not None:
        record["of"] = dict(of)
    write_json(path, record)


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Write a record so that `path` is always a whole one, the old or the new."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def predictions_path(figures_path: Path) -> Path:
    """Return where the samples' outcomes lie: ``eval.predictions.jsonl`` beside ``eval.json``."""
    return figures_path.with_suffix(".predictions.jsonl")


def write_predictions(path: Path, results: Sequence[SetResult]) -> None:
    """Write the outcome of every sample, one JSON object a line, fields as in `SampleResult`."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for result in results:
            for sample in result.samples:
                outcome = {"set": result.name, "is_correct": sample.is_correct, **asdict(sample)}
                file.write(json.dumps(outcome) + "\n")


def _cells(figures: Figures) -> list[str]:
    return [
        f"{figures.num_samples:,}",
        f"{figures.accuracy:.2f}",
        f"{figures.one_minus_ned:.2f}",
        f"{figures.confidence:.2f}",
        f"{figures.label_length:.2f}",
    ]
