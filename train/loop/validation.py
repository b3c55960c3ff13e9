"""Validation at the end of an epoch, each process on its share of every set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...shared.errors import explained_memory
from ..evaluation.evaluate import evaluate_sets
from ..evaluation.metrics import Figures, WordCounts
from ..evaluation.options import EvalOptions
from ..evaluation.test_sets import open_test_sets
from ..models.recogniser import Recogniser
from ..reading.readers import Reader, Text
from .config import TrainConfig, TrainPlace
from .processes import Processes, StopRequestedError


class Validation:
    """The validation sets of a run, opened before its first step."""

    def __init__(self, config: TrainConfig, place: TrainPlace, processes: Processes) -> None:
        """Open the sets.

        Raises:
            DataError: they cannot be used.
        """
        self._processes, self._precision = processes, config.precision
        self._sets = open_test_sets(place.val_data, config.charset, config.max_label_length)

    @property
    def num_samples(self) -> dict[str, int]:
        """How many samples of each set count.

        Scores in best.pt are comparable only on the same validation samples.
        """
        return {test_set.name: len(test_set.pictures) for test_set in self._sets}

    def figures(self, recogniser: Recogniser, stop: Sequence[int] = ()) -> Figures:
        """Read every set. All processes must call this.

        Raises:
            StopRequestedError: a signal is in `stop` of some process. Reading ends with the batch
                in which it came, and the run is as it was before.
        """
        rank, world_size = self._processes.rank, self._processes.world_size
        reader = _StoppableReader(recogniser.eval(), self._precision, stop)
        try:
            counts = evaluate_sets(reader, [s.share(rank, world_size) for s in self._sets]).counts
            parts = self._processes.gather((counts, 0))
        except StopRequestedError as e:
            # The others have to know; they are reading, or wait for this process's counts.
            parts = self._processes.gather((WordCounts(), e.signal_number))
        if stopped_by := max(signal_number for _, signal_number in parts):
            self._processes.wait()  # torchrun ends every process as soon as one of them is gone.
            raise StopRequestedError(stopped_by)
        return sum((counts for counts, _ in parts), WordCounts()).figures


class _StoppableReader(Reader):
    """A reader that reads no further batch after a signal."""

    def __init__(self, recogniser: Recogniser, precision: str, stop: Sequence[int]) -> None:
        super().__init__(recogniser, batch_size=EvalOptions.batch_size, precision=precision)
        self._stop = stop

    def read_views(self, views: torch.Tensor) -> list[Text]:
        """Read a batch of views, unless a signal has come."""
        if self._stop:
            raise StopRequestedError(self._stop[0])
        with explained_memory(
            f"validation reads {self.batch_size} pictures at once; leave --val-data out, and "
            "measure the run with: clipocr eval RUN --data ROOT --batch-size N. --resume needs the "
            "same --val-data"
        ):
            return super().read_views(views)
