"""Several readers on the same samples: accuracies, differences to the first, p values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ...shared.errors import UsageError
from .results import PLAIN, WEIGHTED, SetResult, ShownTable, groups_of
from .significance import PairedCounts

_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class SetComparison:
    """Every reader on the samples of one test set, or of a group, that count for all of them."""

    name: str
    num_samples: int
    num_correct: tuple[int, ...]
    """Of each reader."""
    paired: tuple[PairedCounts, ...]
    """The first reader with itself, then with each of the others."""

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Of each reader, in percent."""
        return tuple(100 * n / max(self.num_samples, 1) for n in self.num_correct)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several readers, set by set."""

    sets: tuple[SetComparison, ...]
    groups: Mapping[str, tuple[str, ...]]
    """The names of each group's sets, by its title."""

    def pooled(self, title: str) -> SetComparison:
        """Return all samples of a group as one set."""
        members = self._members(title)
        return SetComparison(
            name=f"{title}, {WEIGHTED}",
            num_samples=sum(some.num_samples for some in members),
            num_correct=tuple(map(sum, zip(*(some.num_correct for some in members), strict=True))),
            paired=tuple(
                sum(pairs, PairedCounts())
                for pairs in zip(*(some.paired for some in members), strict=True)
            ),
        )

    def plain_accuracies(self, title: str) -> tuple[float, ...]:
        """Return each reader's mean of the accuracies of a group's sets, in percent."""
        members = self._members(title)
        return tuple(map(fmean, zip(*(some.accuracies for some in members), strict=True)))

    def _members(self, title: str) -> list[SetComparison]:
        return [some for some in self.sets if some.name in self.groups[title]]


def compare(runs: Sequence[Sequence[SetResult]]) -> Comparison:
    """Set several readers' results of the same test sets side by side.

    Raises:
        UsageError: not the same sets.
    """
    names = [[result.name for result in results] for results in runs]
    if any(some != names[0] for some in names):
        raise UsageError(f"results of different test sets cannot be compared: {names}")
    return Comparison(
        sets=tuple(_compare_set(results) for results in zip(*runs, strict=True)),
        groups=groups_of(runs[0])[0],
    )


def _compare_set(results: Sequence[SetResult]) -> SetComparison:
    outcomes = [{word.image: word.is_correct for word in some.words} for some in results]
    # Readers of other label lengths leave other samples out.
    common = [key for key in outcomes[0] if all(key in others for others in outcomes[1:])]
    return SetComparison(
        name=results[0].name,
        num_samples=len(common),
        num_correct=tuple(sum(some[key] for key in common) for some in outcomes),
        paired=tuple(
            PairedCounts.of((outcomes[0][key], some[key]) for key in common) for some in outcomes
        ),
    )


def reader_letters(num_readers: int) -> list[str]:
    """Return what readers are called in a table: A, B, ..."""
    return [chr(ord("A") + i) for i in range(num_readers)]


def comparison_as_table(comparison: Comparison) -> ShownTable:
    """Return accuracies and differences, with a note on what the p values are."""
    first, *others = reader_letters(len(comparison.sets[0].num_correct))
    headers = ["set", "samples", first]
    for letter in others:
        headers += [letter, f"{letter} - {first}", f"only {first} / only {letter}", "p"]
    rows = [_row(some) for some in comparison.sets]
    for title, names in comparison.groups.items():
        if len(names) == 1:
            continue  # Its row is there already.
        pooled = comparison.pooled(title)
        plain = comparison.plain_accuracies(title)
        rows.append(_row(pooled))
        row = [f"{title}, {PLAIN}", f"{pooled.num_samples:,}", f"{plain[0]:.2f}"]
        for accuracy in plain[1:]:
            row += [f"{accuracy:.2f}", f"{accuracy - plain[0]:+.2f}", "", ""]
        rows.append(row)
    num_tests = len(comparison.sets) * len(others)
    notes = (
        f"Word accuracy in percent, differences in points. only {first} / only X: words that just "
        "one of the two reads rightly. p: McNemar's exact test of these two counts, two-sided, not "
        "corrected for the number of comparisons"
    )
    if num_tests > 1:
        notes += (
            f": of {num_tests} tests over sets, hold each against {_LEVEL} / {num_tests} = "
            f"{_LEVEL / num_tests:.2g} (Bonferroni)"
        )
    return ShownTable(headers=headers, rows=rows, notes=f"{notes}.")


def _row(some: SetComparison) -> list[str]:
    row = [some.name, f"{some.num_samples:,}", f"{some.accuracies[0]:.2f}"]
    for accuracy, pair in zip(some.accuracies[1:], some.paired[1:], strict=True):
        p_value = f"{pair.p_value:.4f}" if pair.p_value >= 0.0001 else "< 0.0001"
        row += [
            f"{accuracy:.2f}",
            f"{pair.difference:+.2f}",
            f"{pair.only_first:,} / {pair.only_second:,}",
            p_value,
        ]
    return row


def comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    """Return all figures of a comparison, not rounded."""
    letters = reader_letters(len(comparison.sets[0].num_correct))

    def entry(some: SetComparison) -> dict[str, Any]:
        return {
            "num_samples": some.num_samples,
            "accuracy": dict(zip(letters, some.accuracies, strict=True)),
            "against_A": {
                letter: {
                    "difference": pair.difference,
                    "only_A": pair.only_first,
                    f"only_{letter}": pair.only_second,
                    "p_value": pair.p_value,
                }
                for letter, pair in zip(letters[1:], some.paired[1:], strict=True)
            },
        }

    return {
        "test": "McNemar, exact, two-sided, not corrected for the number of comparisons",
        "sets": {some.name: entry(some) for some in comparison.sets},
        "means": {
            title: {
                "sets": list(names),
                WEIGHTED: entry(comparison.pooled(title)),
                PLAIN: dict(zip(letters, comparison.plain_accuracies(title), strict=True)),
            }
            for title, names in comparison.groups.items()
        },
    }
