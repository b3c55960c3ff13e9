"""The results of test sets: as a table, as ``eval.json``, and every word that was read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ...shared.atomic import replacing
from ...shared.charset import Charset
from ...shared.terminal import counted
from ..reading.words import ReadWord
from .metrics import Figures, WordCounts, plain_mean, weighted_mean
from .protocol import benchmark_of, find_groups

WEIGHTED = "weighted by samples"
PLAIN = "plain mean of sets"


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What was read of one test set."""

    name: str
    words: tuple[ReadWord, ...] = field(repr=False)
    """In the order of the set."""
    num_unlabelled: int
    """Samples left out: the test charset leaves nothing of their label, or it is too long."""

    @cached_property
    def counts(self) -> WordCounts:
        """Sums over the words."""
        counts = WordCounts()
        for word in self.words:
            counts.add(word.adapted_text, word.adapted_label, word.confidence)
        return counts

    @property
    def num_broken(self) -> int:
        """Pictures that cannot be decoded."""
        return sum(word.problem is not None for word in self.words)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Figures of a group of test sets together."""

    sets: tuple[str, ...]
    """Names of the sets."""
    weighted: Figures
    """Of all samples: a set counts as often as it has samples."""
    plain: Figures
    """Mean of the sets' figures: each set counts once."""

    def to_json(self) -> dict[str, Any]:
        """Return both means by the names they have in tables."""
        return {
            "sets": list(self.sets),
            WEIGHTED: self.weighted.to_json(),
            PLAIN: self.plain.to_json(),
        }


def groups_of(results: Sequence[SetResult]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the groups that some results make up, as `find_groups` does."""
    return find_groups({r.name: (len(r.words), len(r.words) + r.num_unlabelled) for r in results})


def means_of(results: Sequence[SetResult]) -> dict[str, Mean]:
    """Return the means of every group that is complete, by its title; the last is of all sets."""
    counts = {result.name: result.counts for result in results}
    return {
        title: Mean(
            sets=names,
            weighted=weighted_mean([counts[name] for name in names]),
            plain=plain_mean([counts[name] for name in names]),
        )
        for title, names in groups_of(results)[0].items()
    }


def remarks_on(results: Sequence[SetResult], charset: Charset) -> list[str]:
    """Return what whoever looks at the figures must know."""
    remarks = groups_of(results)[1]
    for result in results:
        if result.num_broken or result.num_unlabelled:
            remarks.append(
                f"{result.name}: {counted(result.num_broken, 'broken image')} counted as "
                f"wrong, {counted(result.num_unlabelled, 'sample')} left out (no label of "
                f"charset {charset.name}, or too long)"
            )
    return remarks


@dataclass(frozen=True, kw_only=True)
class ShownTable:
    """A table of text, as it is shown; converted to `str`, it is Markdown."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: str = ""
    """What its columns are, where that is not plain."""

    def __str__(self) -> str:
        markdown = as_markdown(self.headers, self.rows)
        return f"{markdown}\n\n{self.notes}" if self.notes else markdown


def results_as_table(results: Sequence[SetResult]) -> ShownTable:
    """Return the results: each set, then both means of each group, which are one of one set."""
    rows = [(result.name, result.counts.figures) for result in results]
    for title, mean in means_of(results).items():
        rows.append((f"{title}, {WEIGHTED}", mean.weighted))
        if len(mean.sets) > 1:
            rows.append((f"{title}, {PLAIN}", mean.plain))
    headers = ["set", "samples", "accuracy", "1-NED", "confidence", "label length"]
    return ShownTable(headers=headers, rows=[[name, *_cells(figures)] for name, figures in rows])


def as_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: names to the left, figures to the right."""
    return tabulate(
        rows,
        headers=headers,
        tablefmt="github",
        colalign=("left", *["right"] * (len(headers) - 1)),
        disable_numparse=True,
    )


def results_as_json(results: Sequence[SetResult], charset: Charset) -> dict[str, Any]:
    """Return the results with all their figures, percentages as on the screen but not rounded."""
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
        "means": {title: mean.to_json() for title, mean in means_of(results).items()},
        "remarks": remarks_on(results, charset),
    }


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Write a record so that `path` is always a whole one, the old or the new."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def predictions_path(figures_path: Path) -> Path:
    """Return where the words lie: ``eval.predictions.jsonl`` beside ``eval.json``."""
    return figures_path.with_suffix(".predictions.jsonl")


def write_predictions(path: Path, results: Sequence[SetResult]) -> None:
    """Write every word, one JSON object a line, as `ReadWord.to_json` has it."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for result in results:
            file.writelines(json.dumps(word.to_json()) + "\n" for word in result.words)


def _cells(figures: Figures) -> list[str]:
    return [
        f"{figures.num_samples:,}",
        f"{figures.accuracy:.2f}",
        f"{figures.one_minus_ned:.2f}",
        "-" if figures.confidence is None else f"{figures.confidence:.2f}",
        f"{figures.label_length:.2f}",
    ]
