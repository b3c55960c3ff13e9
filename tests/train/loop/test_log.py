from __future__ import annotations

import pytest
import torch

from clipocr.shared.errors import TrainingError
from clipocr.train.loop.log import Meter
from clipocr.train.loop.processes import Processes

NAN, INF = float("nan"), float("inf")


def meter(max_in_a_row: int = 2) -> Meter:
    return Meter(("a", "total", "grad_norm"), torch.device("cpu"), Processes(), max_in_a_row)


def add(to: Meter, *steps: tuple[float, float, float]) -> None:
    for values in steps:
        to.add(torch.tensor(values))


def test_means_leave_out_skipped_steps() -> None:
    m = meter()
    assert m.means() == {}
    add(m, (1, 2, 3), (NAN, NAN, NAN), (3, 6, 5), (5, 5, INF))
    assert m.means() == {"a": 2, "total": 4, "grad_norm": 4}
    assert m.num_skipped == 2
    assert m.latest() == {"a": 5, "total": 5, "grad_norm": INF}


def test_too_many_in_a_row_end_the_run_and_say_where() -> None:
    m = meter()
    add(m, (1, 1, 1), (NAN, NAN, NAN), (NAN, NAN, NAN))
    m.check(3)
    add(m, (1, 1, 1), (1, NAN, NAN), (1, NAN, NAN), (1, INF, NAN))
    with pytest.raises(
        TrainingError, match=r"steps 5 to 7 .*; not finite: total, grad_norm. Begin"
    ):
        m.check(7)


def test_state_survives_a_checkpoint() -> None:
    whole, first, second = meter(), meter(), meter()
    steps = [(1.5, 2, 3), (NAN, 1, NAN), (0.1, 0.2, 0.3), (NAN, NAN, NAN)]
    add(whole, *steps)
    add(first, *steps[:2])
    second.restore(first.state())
    add(second, *steps[2:])
    assert second.state() == whole.state()
    assert whole.state()["skipped_in_a_row"] == 1
