"""What was read of test sets: every word, the figures, and the tables and files of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ...shared.atomic import replacing
from ...shared.charset import Charset
from ...shared.terminal import counted
from ..reading.readers import PictureBatchReader
from ..reading.words import ReadWord
from .metrics import Figures, WordCounts, plain_mean
from .paired import compared
from .protocol import PLAIN, WEIGHTED, benchmark_of, find_groups, shown_title
from .stages import Stage, find_stages
from .tables import ShownTable
from .test_sets import TestSet


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What was read of one test set."""

    test_set: TestSet
    words: tuple[ReadWord, ...] = field(repr=False)
    """In the order of the set."""

    @classmethod
    def under(cls, test_set: TestSet, read: Mapping[Any, ReadWord]) -> Self:
        """Return the result under the charset of a test set.

        `read` holds a word for each of its pictures, of which no text passed through a charset.
        """
        adapt = test_set.charset.adapt
        words = (
            replace(
                read[picture.image],
                label=picture.label,
                adapted_label=picture.adapted_label,
                adapted_text=adapt(read[picture.image].text),
                drafts={k: adapt(draft) for k, draft in read[picture.image].drafts.items()},
            )
            for picture in test_set.pictures
        )
        return cls(test_set=test_set, words=tuple(words))

    @property
    def name(self) -> str:
        """Of the set."""
        return self.test_set.name

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


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one reader read of some test sets, and the figures that come of it."""

    reader: PictureBatchReader
    sets: tuple[SetResult, ...]
    """Each test set's name, words, and counts with their ``figures``."""

    @property
    def charset(self) -> Charset:
        """The test charset."""
        return self.sets[0].test_set.charset

    @cached_property
    def words(self) -> list[ReadWord]:
        """Every word of every set."""
        return [word for result in self.sets for word in result.words]

    @property
    def counts(self) -> WordCounts:
        """Sums over all words."""
        return sum((result.counts for result in self.sets), WordCounts())

    @cached_property
    def stages(self) -> list[Stage]:
        """What each stage of the recogniser made of all words; empty if it reads once."""
        return find_stages(self.words)

    @property
    def figures(self) -> dict[str, Figures]:
        """By the name of the set."""
        return {result.name: result.counts.figures for result in self.sets}

    @property
    def groups(self) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """Groups that the sets make up and remarks on them, as of `find_groups`."""
        return find_groups(
            {
                some.name: (len(some.words), len(some.words) + some.test_set.num_unlabelled)
                for some in self.sets
            }
        )

    @property
    def means(self) -> dict[str, Mean]:
        """Of each group of benchmarks that is complete, by its title; ``total`` is of all sets."""
        counts = {result.name: result.counts for result in self.sets}
        return {
            title: Mean(
                sets=names,
                weighted=sum((counts[name] for name in names), WordCounts()).figures,
                plain=plain_mean([counts[name].figures for name in names]),
            )
            for title, names in self.groups[0].items()
        }

    @property
    def remarks(self) -> list[str]:
        """What whoever looks at the figures must know."""
        remarks = self.groups[1]
        own, charset = self.reader.charset, self.charset
        if own is not None:
            # What it writes passes through the test charset, which may fold its case.
            writable = {c for character in own.characters for c in charset.adapt(character)}
            missing = [c for c in charset.characters if c not in writable]
            if missing:
                remarks.insert(
                    0,
                    f"{self.reader.name} was trained on charset {own.name} and cannot write "
                    f"{counted(len(missing), 'character')} of test charset {charset.name} "
                    f"({''.join(missing[:8])}{'...' if len(missing) > 8 else ''}); words with them "
                    "count as wrong, unless another test charset is chosen",
                )
        for some in self.sets:
            num_unlabelled = some.test_set.num_unlabelled
            if some.num_broken or num_unlabelled:
                remarks.append(
                    f"{some.name}: {counted(some.num_broken, 'broken image')} counted as "
                    f"wrong, {counted(num_unlabelled, 'sample')} left out (no label of "
                    f"charset {charset.name}, or too long)"
                )
        return remarks

    @property
    def results(self) -> ShownTable:
        """Each set, then both means of each group, which are one of one set."""
        rows = list(self.figures.items())
        for title, mean in self.means.items():
            title = shown_title(title, len(mean.sets))
            rows.append((f"{title}, {WEIGHTED}", mean.weighted))
            if len(mean.sets) > 1:
                rows.append((f"{title}, {PLAIN}", mean.plain))
        return ShownTable(
            headers=["set", "samples", "accuracy", "1-NED", "confidence", "label length"],
            rows=[
                [
                    name,
                    f"{figures.num_samples:,}",
                    f"{figures.accuracy:.2f}",
                    f"{figures.one_minus_ned:.2f}",
                    "-" if figures.confidence is None else f"{figures.confidence:.2f}",
                    f"{figures.label_length:.2f}",
                ]
                for name, figures in rows
            ],
        )

    def table(self, *others: Evaluation) -> str:
        """Return the figures as Markdown, or those of several evaluations side by side.

        With `others` come differences in accuracy and McNemar's exact test of each against this.

        Raises:
            UsageError: the others are not of the same test sets.
        """
        return str(compared([self, *others]).table if others else self.results)

    def report(self, folder: str | os.PathLike[str], *others: Evaluation) -> Path:
        """Write ``index.html`` about this evaluation, or several side by side; return its path.

        Raises:
            ImageProblemError: a picture is not there any more.
            UsageError: the others are not of the same test sets.
        """
        from ..report.page import write_report

        return write_report(Path(folder), [self, *others])

    def to_json(self) -> dict[str, Any]:
        """Return all figures, not rounded, as ``eval.json`` has them."""
        checkpoint = self.reader.checkpoint
        of = {"checkpoint": str(checkpoint)} if checkpoint else {"reader": self.reader.name}
        record: dict[str, Any] = {
            **of,
            **({"moment": dict(self.reader.moment)} if self.reader.moment else {}),
            "charset": self.charset.name,
            "sets": {
                result.name: result.counts.figures.to_json()
                | {
                    "num_correct": result.counts.num_correct,
                    "num_broken": result.num_broken,
                    "num_unlabelled": result.test_set.num_unlabelled,
                    "benchmark": benchmark_of(result.name),
                }
                for result in self.sets
            },
            "means": {
                title: {
                    "sets": list(mean.sets),
                    WEIGHTED: mean.weighted.to_json(),
                    PLAIN: mean.plain.to_json(),
                }
                for title, mean in self.means.items()
            },
            "remarks": self.remarks,
        }
        if self.stages:
            record["stages"] = {stage.name: stage.to_json() for stage in self.stages}
        return record

    def write_predictions(self, figures_path: Path) -> None:
        """Write every word, one JSON object a line: ``eval.predictions.jsonl`` at ``eval.json``."""
        with (
            replacing(figures_path.with_suffix(".predictions.jsonl")) as partial,
            partial.open("w", encoding="utf-8") as file,
        ):
            file.writelines(json.dumps(word.to_json()) + "\n" for word in self.words)


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Write a record so that `path` is always a whole one, the old or the new."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
