"""What a run says of itself while it trains, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


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
