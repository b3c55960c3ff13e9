from __future__ import annotations

from math import comb

import pytest

from clipocr.train.evaluation.paired import mcnemar_exact


@pytest.mark.parametrize(
    ("only_first", "only_other", "expected"),
    [
        (0, 0, 1),
        (0, 1, 1),  # One sample says nothing: 2 * 1/2.
        (3, 3, 1),
        (0, 5, 2 / 32),
        (1, 8, 2 * (1 + 9) / 512),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_p_values_by_hand(only_first: int, only_other: int, expected: float) -> None:
    assert mcnemar_exact(only_first, only_other) == expected
    assert mcnemar_exact(only_other, only_first) == expected


def test_p_value_is_the_chance_of_a_split_at_least_as_uneven() -> None:
    for n in range(1, 40):
        for only_first in range(n + 1):
            at_least = [k for k in range(n + 1) if abs(2 * k - n) >= abs(2 * only_first - n)]
            chance = sum(comb(n, k) for k in at_least) / 2**n
            assert mcnemar_exact(only_first, n - only_first) == pytest.approx(chance, rel=1e-12)


def test_large_sets_neither_overflow_nor_lose_digits() -> None:
    # From the normal approximation with continuity correction: z = 199 / sqrt(20000) = 1.4071.
    assert mcnemar_exact(10_100, 9_900) == pytest.approx(0.1594, abs=2e-4)
    assert mcnemar_exact(0, 2000) == 0  # 2 ** -1999 is less than any float.
