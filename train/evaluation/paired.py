"""Several readers on the same samples: accuracies, differences to the first, p values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ...shared.errors import UsageError
from .protocol import PLAIN, WEIGHTED
from .tables import ShownTable

if TYPE_CHECKING:
    from .results import Evaluation, SetResult

_LEVEL = 0.05

Outcomes = Counter[tuple[bool, bool]]
"""How many samples have which outcome: whether the first reader is right, and whether another is.

Of the samples that count for every reader.
"""


def accuracy(outcomes: Outcomes) -> float:
    """Return the other reader's accuracy in percent."""
    return 100 * (outcomes[True, True] + outcomes[False, True]) / max(outcomes.total(), 1)


def difference(outcomes: Outcomes) -> float:
    """Return the other reader's accuracy less that of the first, in percentage points."""
    return 100 * (outcomes[False, True] - outcomes[True, False]) / max(outcomes.total(), 1)


def mcnemar_exact(outcomes: Outcomes) -> float:
    """Return the two-sided p value of the exact McNemar test.

    Were two readers equally good, a sample that just one of them reads would be either's with
    probability 1/2: the p value is the chance of a split at least as uneven among so many. The sum
    is one of integers, so that it is exact however many there are.
    """
    only_first, only_other = outcomes[True, False], outcomes[False, True]
    num_split = only_first + only_other
    term = tail = 1
    for i in range(min(only_first, only_other)):
        term = term * (num_split - i) // (i + 1)
        tail += term
    p_value: float = 2 * tail / 2**num_split
    return min(1.0, p_value)


def reader_letters(num_readers: int) -> list[str]:
    """Return what readers are called in a table: A, B, ..."""
    return [chr(ord("A") + i) for i in range(num_readers)]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several readers, set by set."""

    sets: Mapping[str, Sequence[Outcomes]]
    """By name: the first reader beside itself, then beside each of the others."""
    groups: Mapping[str, tuple[str, ...]]
    """The names of each group's sets, by its title."""

    @property
    def letters(self) -> list[str]:
        """What the readers are called."""
        return reader_letters(len(next(iter(self.sets.values()))))

    def pooled(self, title: str) -> list[Outcomes]:
        """Return all samples of a group as one set."""
        of_readers = zip(*(self.sets[name] for name in self.groups[title]), strict=True)
        return [sum(outcomes, Outcomes()) for outcomes in of_readers]

    def plain_accuracies(self, title: str) -> list[float]:
        """Return each reader's mean of the accuracies of a group's sets, in percent."""
        of_readers = zip(*(self.sets[name] for name in self.groups[title]), strict=True)
        return [fmean(map(accuracy, outcomes)) for outcomes in of_readers]

    def table(self) -> ShownTable:
        """Return accuracies and differences, with a note on what the p values are."""
        first, *others = self.letters
        headers = ["set", "samples", first]
        for letter in others:
            headers += [letter, f"{letter} - {first}", f"only {first} / only {letter}", "p"]
        rows = [_row(name, outcomes) for name, outcomes in self.sets.items()]
        for title, names in self.groups.items():
            if len(names) == 1:
                continue  # Its row is there already.
            pooled, plain = self.pooled(title), self.plain_accuracies(title)
            rows.append(_row(f"{title}, {WEIGHTED}", pooled))
            row = [f"{title}, {PLAIN}", f"{pooled[0].total():,}", f"{plain[0]:.2f}"]
            for percent in plain[1:]:
                row += [f"{percent:.2f}", f"{percent - plain[0]:+.2f}", "", ""]
            rows.append(row)
        num_tests = len(self.sets) * len(others)
        notes = (
            f"Word accuracy in percent, differences in points. only {first} / only X: words that "
            "just one of the two reads rightly. p: McNemar's exact test of these two counts, "
            "two-sided, not corrected for the number of comparisons"
        )
        if num_tests > 1:
            notes += (
                f": of {num_tests} tests over sets, hold each against {_LEVEL} / {num_tests} = "
                f"{_LEVEL / num_tests:.2g} (Bonferroni)"
            )
        return ShownTable(headers=headers, rows=rows, notes=f"{notes}.")

    def to_json(self) -> dict[str, Any]:
        """Return all figures, not rounded."""
        letters = self.letters

        def entry(of_readers: Sequence[Outcomes]) -> dict[str, Any]:
            named = dict(zip(letters, of_readers, strict=True))
            return {
                "num_samples": of_readers[0].total(),
                "accuracy": {letter: accuracy(some) for letter, some in named.items()},
                "against_A": {
                    letter: {
                        "difference": difference(named[letter]),
                        "only_A": named[letter][True, False],
                        f"only_{letter}": named[letter][False, True],
                        "p_value": mcnemar_exact(named[letter]),
                    }
                    for letter in letters[1:]
                },
            }

        return {
            "test": "McNemar, exact, two-sided, not corrected for the number of comparisons",
            "sets": {name: entry(outcomes) for name, outcomes in self.sets.items()},
            "means": {
                title: {
                    "sets": list(names),
                    WEIGHTED: entry(self.pooled(title)),
                    PLAIN: dict(zip(letters, self.plain_accuracies(title), strict=True)),
                }
                for title, names in self.groups.items()
            },
        }


def compare(evaluations: Sequence[Evaluation]) -> Comparison:
    """Set several readers' results of the same test sets side by side.

    Raises:
        UsageError: not the same sets.
    """
    names = [[result.name for result in each.sets] for each in evaluations]
    if any(some != names[0] for some in names):
        raise UsageError(f"results of different test sets cannot be compared: {names}")
    by_set = zip(*(each.sets for each in evaluations), strict=True)
    return Comparison(
        sets={results[0].name: _outcomes(results) for results in by_set},
        groups=evaluations[0].groups[0],
    )


def _outcomes(results: Sequence[SetResult]) -> list[Outcomes]:
    right = [{word.image: word.is_correct for word in some.words} for some in results]
    # Readers of other label lengths leave other samples out.
    common = [key for key in right[0] if all(key in others for others in right[1:])]
    return [Counter((right[0][key], some[key]) for key in common) for some in right]


def _row(name: str, of_readers: Sequence[Outcomes]) -> list[str]:
    row = [name, f"{of_readers[0].total():,}", f"{accuracy(of_readers[0]):.2f}"]
    for some in of_readers[1:]:
        p_value = mcnemar_exact(some)
        row += [
            f"{accuracy(some):.2f}",
            f"{difference(some):+.2f}",
            f"{some[True, False]:,} / {some[False, True]:,}",
            f"{p_value:.4f}" if p_value >= 0.0001 else "< 0.0001",
        ]
    return row
