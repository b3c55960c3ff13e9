"""What a run says of itself: its values step by step, how fast it is, and how both are logged.

Shapes: V values (the loss terms, their total, the gradient norm).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

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
        """Begin an epoch.

        Args:
            names: Of the V values; the gradient norm last.
            device: Where the values are.
            processes: Whose means are wanted.
            max_skipped_in_a_row: More steps than this, one after another, end the run.
        """
        self.names = tuple(names)
        self._processes = processes
        self._max_in_a_row = max_skipped_in_a_row
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self._sums = zero.repeat(len(self.names))
        self._num_counted, self._num_skipped, self._in_a_row = zero.clone(), zero.clone(), zero
        self._latest = self._last_skipped = self._sums

    def begin_epoch(self) -> None:
        """Forget the sums, but not how many steps in a row were skipped."""
        self._sums = torch.zeros_like(self._sums)
        self._num_counted = torch.zeros_like(self._num_counted)
        self._num_skipped = torch.zeros_like(self._num_skipped)

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

    def check(self, step: int, advice: str) -> None:
        """Look whether too many steps were skipped.

        Raises:
            TrainingError: they were.
        """
        in_a_row = int(self._in_a_row)
        if in_a_row > self._max_in_a_row:
            bad = [
                name
                for name, value in zip(self.names, self._last_skipped.tolist(), strict=True)
                if not -float("inf") < value < float("inf")
            ]
            raise TrainingError(
                f"steps {step - in_a_row + 1} to {step} had to be skipped: {', '.join(bad)} "
                f"{'is' if len(bad) == 1 else 'are'} not finite. {advice}"
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


class Clock:
    """Counts samples, and the time spent training and waiting for data."""

    def __init__(self) -> None:
        self.num_samples = 0
        self._waited = self._elapsed = 0.0
        self._since: float | None = None
        self._has_started = False

    def waiting(self, batches: Iterator[Batch]) -> Generator[Batch]:
        """Yield `batches`, timing each wait; the very first only starts the clock."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            now = time.perf_counter()
            if self._has_started:
                self._waited += now - asked
            if self._since is None:
                self._since = asked if self._has_started else now
            self._has_started = True
            self.num_samples += len(batch.labels)
            yield batch

    def pause(self) -> None:
        """Stop counting until the next batch: what follows is not training."""
        if self._since is not None:
            self._elapsed += time.perf_counter() - self._since
            self._since = None

    @property
    def _seconds(self) -> float:
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        return max(self._elapsed + running, 1e-9)

    @property
    def samples_per_second(self) -> float:
        """Samples per second of training."""
        return self.num_samples / self._seconds

    @property
    def wait_fraction(self) -> float:
        """Share of training time spent waiting for a batch."""
        return self._waited / self._seconds


class Logbook:
    """TensorBoard's log: loss terms below ``loss/``, all else of a step below ``train/``."""

    def __init__(self, out: Path | None, step: int) -> None:
        """Open the log.

        Args:
            out: The run's folder; None: write nothing, as processes do that are not the first.
            step: Steps taken; what an earlier process logged of later ones is forgotten.
        """
        self._board: Any = None
        if out is not None:
            # Imported here: it takes a second that other commands need not spend.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out), purge_step=step + 1)

    def write_step(
        self, step: int, values: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        """Log the values of `Meter`, and how the run goes on."""
        terms = {f"loss/{k}": v for k, v in values.items() if k != "grad_norm"}
        other = {"grad_norm": values["grad_norm"], **speed}
        self.write(step, terms | {f"train/{k}": v for k, v in other.items()})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values by their full names."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> Logbook:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()
