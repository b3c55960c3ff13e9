"""Whether two readers differ on the samples that both read: McNemar's exact test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """How often two readers are right on the same samples."""

    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[tuple[bool, bool]]) -> PairedCounts:
        """Count (first is right, second is right) of each sample."""
        counts = {(first, second): 0 for first in (True, False) for second in (True, False)}
        for first, second in outcomes:
            counts[first, second] += 1
        return cls(
            both=counts[True, True],
            only_first=counts[True, False],
            only_second=counts[False, True],
            neither=counts[False, False],
        )

    def __add__(self, other: PairedCounts) -> PairedCounts:
        return PairedCounts(**{name: v + vars(other)[name] for name, v in vars(self).items()})

    @property
    def num_samples(self) -> int:
        """Samples that both read."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first, in percentage points."""
        return 100 * (self.only_second - self.only_first) / max(self.num_samples, 1)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided."""
        return mcnemar_exact(self.only_first, self.only_second)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of the exact McNemar test.

    Were two readers equally good, a sample that just one of them reads would be either's with
    probability 1/2: the p value is the chance of a split at least as uneven among so many. The sum
    is one of integers, so that it is exact however many there are.

    Args:
        only_first: Samples that only the first reader reads rightly.
        only_second: Samples that only the second does.
    """
    num_split = only_first + only_second
    term = tail = 1
    for i in range(min(only_first, only_second)):
        term = term * (num_split - i) // (i + 1)
        tail += term
    p_value: float = 2 * tail / 2**num_split
    return min(1.0, p_value)
