"""Several readers on the same samples: accuracies, differences to the first, p values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ...shared.errors import UsageError
from .metrics import WordCounts
from .names import short_names
from .protocol import PLAIN, WEIGHTED, shown_title
from .tables import ShownTable

if TYPE_CHECKING:
    from .results import Evaluation, SetResult

_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What a reader read of the samples that count for every reader, beside the first one."""

    counts: WordCounts = field(default_factory=WordCounts)
    only_first: int = 0
    """Words that the first reader reads correctly, and this one does not."""
    only_this: int = 0

    def __add__(self, other: Pair) -> Pair:
        return Pair(
            counts=self.counts + other.counts,
            only_first=self.only_first + other.only_first,
            only_this=self.only_this + other.only_this,
        )

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test."""
        return mcnemar_exact(self.only_first, self.only_this)


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """A test set, or a mean of several, and what each reader made of it."""

    name: str
    num_samples: int
    accuracies: tuple[float, ...]
    """In percent, a reader each."""
    ones_minus_ned: tuple[float, ...]
    """1-NED in percent, a reader each."""
    pairs: tuple[Pair, ...] = ()
    """A reader each; empty of a plain mean, which has no test."""

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the figures by the readers' names, not rounded."""
        record: dict[str, Any] = {"name": self.name, "num_samples": self.num_samples, "readers": {}}
        for i, name in enumerate(names):
            figures: dict[str, float] = {
                "accuracy": self.accuracies[i],
                "1-NED": self.ones_minus_ned[i],
            }
            if i > 0:
                figures["difference"] = self.accuracies[i] - self.accuracies[0]
                if self.pairs:
                    pair = self.pairs[i]
                    figures |= {
                        "num_only_first": pair.only_first,
                        "num_only_this": pair.only_this,
                        "p": pair.p_value,
                    }
            record["readers"][name] = figures
        return record


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several readers on the same test sets."""

    names: tuple[str, ...]
    """Of the readers, each its own."""
    rows: tuple[ComparedRow, ...]
    num_tests: int

    @property
    def table(self) -> ShownTable:
        """Accuracies, differences to the first reader, McNemar's test, and 1-NED."""
        first, *others = self.names
        headers = ["set", "samples", first]
        for name in others:
            headers += [name, "difference", "only first / only this", "p"]
        headers += [f"1-NED {name}" for name in self.names]
        notes = (
            f"Word accuracy and 1-NED in percent, differences to {first} in points. only first / "
            f"only this: words that {first} alone, or the other alone, reads correctly. p: "
            "McNemar's exact test of these two counts, two-sided"
        )
        if self.num_tests > 1:
            notes += (
                f", not corrected for the number of comparisons: of {self.num_tests} tests over "
                f"sets, hold each against {_LEVEL} / {self.num_tests} = "
                f"{_LEVEL / self.num_tests:.2g} (Bonferroni)"
            )
        return ShownTable(headers=headers, rows=list(map(_cells, self.rows)), notes=f"{notes}.")

    def to_json(self) -> list[dict[str, Any]]:
        """Return a record for each row, with figures that are not rounded."""
        return [row.to_json(self.names) for row in self.rows]


def reader_letters(num_readers: int) -> list[str]:
    """Return what readers are called on a page: A, B, ..."""
    return [chr(ord("A") + i) for i in range(num_readers)]


def mcnemar_exact(only_first: int, only_other: int) -> float:
    """Return the two-sided p value of the exact McNemar test.

    Were two readers equally good, a sample that just one of them reads would be either's with
    probability 1/2: the p value is the chance of a split at least as uneven among so many. The sum
    is one of integers, so that it is exact however many there are.
    """
    num_split = only_first + only_other
    term = tail = 1
    for i in range(min(only_first, only_other)):
        term = term * (num_split - i) // (i + 1)
        tail += term
    p_value: float = 2 * tail / 2**num_split
    return min(1.0, p_value)


def shown_p_value(p_value: float) -> str:
    """Return a p value as tables have it."""
    return f"{p_value:.4f}" if p_value >= 0.0001 else "< 0.0001"


def compare(evaluations: Sequence[Evaluation]) -> ShownTable:
    """Return the table of `compared`."""
    return compared(evaluations).table


def compared(evaluations: Sequence[Evaluation]) -> Comparison:
    """Return several readers' figures on the same test sets beside those of the first.

    Raises:
        UsageError: not the same sets.
    """
    names = [[result.name for result in each.sets] for each in evaluations]
    if any(some != names[0] for some in names):
        raise UsageError(f"results of different test sets cannot be compared: {names}")
    by_set = zip(*(each.sets for each in evaluations), strict=True)
    pairs = {results[0].name: _pairs(results) for results in by_set}
    groups = evaluations[0].groups[0]
    return Comparison(
        names=tuple(short_names([each.reader for each in evaluations])),
        rows=(
            *(_row(name, of_readers) for name, of_readers in pairs.items()),
            *(row for title, members in groups.items() for row in _means(title, members, pairs)),
        ),
        num_tests=len(pairs) * (len(evaluations) - 1),
    )


def _means(
    title: str, members: Sequence[str], pairs: dict[str, list[Pair]]
) -> Iterator[ComparedRow]:
    """Yield both means of a group; of one set they would be that set's row again."""
    if len(members) == 1:
        return
    title = shown_title(title, len(members))
    by_reader = list(zip(*(pairs[name] for name in members), strict=True))
    pooled = _row(f"{title}, {WEIGHTED}", [sum(of_sets, Pair()) for of_sets in by_reader])
    yield pooled
    figures = [[pair.counts.figures for pair in of_sets] for of_sets in by_reader]
    yield ComparedRow(
        name=f"{title}, {PLAIN}",
        num_samples=pooled.num_samples,
        accuracies=tuple(fmean(some.accuracy for some in of_sets) for of_sets in figures),
        ones_minus_ned=tuple(fmean(some.one_minus_ned for some in of_sets) for of_sets in figures),
    )


def _pairs(results: Sequence[SetResult]) -> list[Pair]:
    """Return what each reader read of one set, the first one beside itself."""
    words = [{word.image: word for word in some.words} for some in results]
    # Readers of other label lengths leave other samples out.
    common = [key for key in words[0] if all(key in others for others in words[1:])]
    pairs = []
    for of_reader in words:
        counts, only_first, only_this = WordCounts(), 0, 0
        for key in common:
            first, word = words[0][key], of_reader[key]
            counts.add(word.adapted_text, word.adapted_label, word.confidence)
            only_first += first.is_correct and not word.is_correct
            only_this += word.is_correct and not first.is_correct
        pairs.append(Pair(counts=counts, only_first=only_first, only_this=only_this))
    return pairs


def _row(name: str, of_readers: Sequence[Pair]) -> ComparedRow:
    figures = [pair.counts.figures for pair in of_readers]
    return ComparedRow(
        name=name,
        num_samples=figures[0].num_samples,
        accuracies=tuple(some.accuracy for some in figures),
        ones_minus_ned=tuple(some.one_minus_ned for some in figures),
        pairs=tuple(of_readers),
    )


def _cells(row: ComparedRow) -> list[str]:
    first, *others = row.accuracies
    cells = [row.name, f"{row.num_samples:,}", f"{first:.2f}"]
    for i, accuracy in enumerate(others, start=1):
        cells += [f"{accuracy:.2f}", f"{accuracy - first:+.2f}"]
        if row.pairs:
            pair = row.pairs[i]
            cells += [f"{pair.only_first:,} / {pair.only_this:,}", shown_p_value(pair.p_value)]
        else:
            cells += ["", ""]
    return [*cells, *(f"{ned:.2f}" for ned in row.ones_minus_ned)]
