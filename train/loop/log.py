"""What a run says of itself: its values step by step, and how fast it is.

Shapes: V values (the loss terms, their total, the gradient norm).
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from ...shared.errors import TrainingError
from ..data.batch import Batch
from .processes import Processes


class Meter:
    """Sums over an epoch, and the guard against steps that are not finite.

    All counts stay on the device, because on a GPU every look at a value waits for it; `check`
    looks once in a while. The gradient scaler skips a step whose gradient is not finite; here it is
    left out of the sums and counted.
    """

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device,
        processes: Processes,
        max_skipped_in_a_row: int,
    ) -> None:
        """Begin an epoch; the last of the V names is that of the gradient norm."""
        self.names = tuple(names)
        self._processes = processes
        self._max_in_a_row = max_skipped_in_a_row
        self._latest = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._last_skipped = self._latest
        self._in_a_row = self._latest.new_zeros(())
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the sums, but not how many steps in a row were skipped."""
        self._sums = torch.zeros_like(self._latest)
        self._num_counted = torch.zeros_like(self._in_a_row)
        self._num_skipped = torch.zeros_like(self._in_a_row)

    def add(self, values: torch.Tensor) -> None:
        """Count one step. Shape: (V,)."""
        values = values.double()
        is_finite = values[-1].isfinite()
        self._sums = torch.where(is_finite, self._sums + values, self._sums)
        self._num_counted = self._num_counted + is_finite
        self._num_skipped = self._num_skipped + ~is_finite
        self._in_a_row = torch.where(is_finite, 0.0, self._in_a_row + 1)
        self._last_skipped = torch.where(is_finite, self._last_skipped, values)
        self._latest = values

    def check(self, step: int) -> None:
        """Look whether too many steps up to this one were skipped.

        Raises:
            TrainingError: they were.
        """
        in_a_row = int(self._in_a_row)
        if in_a_row > self._max_in_a_row:
            skipped = zip(self.names, self._last_skipped.tolist(), strict=True)
            bad = [name for name, value in skipped if not math.isfinite(value)]
            raise TrainingError(
                f"steps {step - in_a_row + 1} to {step} had to be skipped; not finite: "
                f"{', '.join(bad)}. Begin again in another --out with a lower --learning-rate or "
                "with --precision fp32"
            )

    def latest(self) -> dict[str, float]:
        """Return the values of the last step, means over processes."""
        return dict(zip(self.names, self._processes.mean(self._latest).tolist(), strict=True))

    def means(self) -> dict[str, float]:
        """Return the mean of each value over the steps that counted; none before the first."""
        state = self.state()
        counted = state["counted"]
        return {name: state[name] / counted for name in self.names} if counted else {}

    @property
    def num_skipped(self) -> int:
        """Steps skipped since the epoch began."""
        return int(self._num_skipped)

    def state(self) -> dict[str, float]:
        """Return the sums, means over processes, and the counts, for a checkpoint."""
        sums = self._processes.mean(self._sums).tolist()
        return {
            **dict(zip(self.names, sums, strict=True)),
            "counted": float(self._num_counted),
            "skipped": float(self._num_skipped),
            "skipped_in_a_row": float(self._in_a_row),
        }

    def restore(self, state: Mapping[str, float]) -> None:
        """Take up what `state` returned."""
        self._sums = self._sums.new_tensor([state[name] for name in self.names])
        self._num_counted = self._sums.new_tensor(state["counted"])
        self._num_skipped = self._sums.new_tensor(state["skipped"])
        self._in_a_row = self._sums.new_tensor(state["skipped_in_a_row"])


class ClockReading(NamedTuple):
    """What a clock has counted, or counted between two readings."""

    num_samples: int
    waited_s: float
    """Of the seconds, those spent waiting for the loader."""
    seconds: float

    def since(self, earlier: ClockReading) -> ClockReading:
        """Return what was counted since an earlier reading."""
        return ClockReading(
            self.num_samples - earlier.num_samples,
            self.waited_s - earlier.waited_s,
            self.seconds - earlier.seconds,
        )

    @property
    def samples_per_second(self) -> float:
        """Samples per second of training; 0 if there were none."""
        return self.num_samples / max(self.seconds, 1e-9)

    @property
    def wait_fraction(self) -> float:
        """Share of training time spent waiting for a batch."""
        return self.waited_s / max(self.seconds, 1e-9)


class Clock:
    """Counts samples, and the time spent training and waiting for data.

    Only between the batches of an iterator: what follows its end, as validation does, is not
    counted, nor is the wait for the very first batch.
    """

    def __init__(self) -> None:
        self._num_samples = 0
        self._waited_s = self._trained_s = 0.0

    def timed(self, batches: Iterator[Batch]) -> Generator[Batch]:
        """Yield `batches`, timing each wait and what is done with each."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            got = time.perf_counter()
            if self._num_samples:
                self._waited_s += got - asked
            try:
                yield batch
            finally:
                self._trained_s += time.perf_counter() - got
                self._num_samples += len(batch.labels)

    def read(self) -> ClockReading:
        """Return what was counted until now."""
        return ClockReading(self._num_samples, self._waited_s, self._waited_s + self._trained_s)
