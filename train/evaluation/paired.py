"""Several readers on the same samples: accuracies, differences to the first, p values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

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


def reader_letters(num_readers: int) -> list[str]:
    """Return what readers are called in a table: A, B, ..."""
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


def compare(evaluations: Sequence[Evaluation]) -> ShownTable:
    """Return several readers' accuracies on the same test sets and differences to the first.

    Raises:
        UsageError: not the same sets.
    """
    names = [[result.name for result in each.sets] for each in evaluations]
    if any(some != names[0] for some in names):
        raise UsageError(f"results of different test sets cannot be compared: {names}")
    by_set = zip(*(each.sets for each in evaluations), strict=True)
    outcomes = {results[0].name: _outcomes(results) for results in by_set}
    first, *others = reader_letters(len(evaluations))
    headers = ["set", "samples", first]
    for letter in others:
        headers += [letter, f"{letter} - {first}", f"only {first} / only {letter}", "p"]
    rows = [_row(name, of_readers) for name, of_readers in outcomes.items()]
    for title, members in evaluations[0].groups[0].items():
        if len(members) == 1:
            continue  # Its row is there already.
        by_reader = list(zip(*(outcomes[name] for name in members), strict=True))
        pooled = [sum(of_sets, Outcomes()) for of_sets in by_reader]
        rows.append(_row(f"{title}, {WEIGHTED}", pooled))
        plain = [fmean(map(_accuracy, of_sets)) for of_sets in by_reader]
        row = [f"{title}, {PLAIN}", f"{pooled[0].total():,}", f"{plain[0]:.2f}"]
        for percent in plain[1:]:
            row += [f"{percent:.2f}", f"{percent - plain[0]:+.2f}", "", ""]
        rows.append(row)
    num_tests = len(outcomes) * len(others)
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


def _outcomes(results: Sequence[SetResult]) -> list[Outcomes]:
    """Return the first reader's outcomes beside itself, then beside each of the others."""
    right = [{word.image: word.is_correct for word in some.words} for some in results]
    # Readers of other label lengths leave other samples out.
    common = [key for key in right[0] if all(key in others for others in right[1:])]
    return [Counter((right[0][key], some[key]) for key in common) for some in right]


def _accuracy(outcomes: Outcomes) -> float:
    """Return the other reader's accuracy in percent."""
    return 100 * (outcomes[True, True] + outcomes[False, True]) / max(outcomes.total(), 1)


def _row(name: str, of_readers: Sequence[Outcomes]) -> list[str]:
    row = [name, f"{of_readers[0].total():,}", f"{_accuracy(of_readers[0]):.2f}"]
    for some in of_readers[1:]:
        only_first, only_other = some[True, False], some[False, True]
        difference = 100 * (only_other - only_first) / max(some.total(), 1)
        p_value = mcnemar_exact(only_first, only_other)
        row += [
            f"{_accuracy(some):.2f}",
            f"{difference:+.2f}",
            f"{only_first:,} / {only_other:,}",
            f"{p_value:.4f}" if p_value >= 0.0001 else "< 0.0001",
        ]
    return row
