"""Sums over an epoch, and the guard against steps that are not finite.

On a GPU every look at a value waits for the device, so all counts stay there, and `check` looks at
them once in a while. A step whose gradient is not finite is skipped by the gradient scaler; here it
is left out of the sums and counted.

Shapes: V values (the loss terms, their total, the gradient norm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...shared.errors import TrainingError
from .processes import Processes


class Meter:
    """What the steps of an epoch came to."""

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
