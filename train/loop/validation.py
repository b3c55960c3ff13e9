"""Validation at the end of an epoch, each process on its share of every set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...shared.errors import explained_memory
from ...shared.interrupts import Interrupted
from ..evaluation.evaluate import evaluate_sets
from ..evaluation.metrics import WordCounts
from ..evaluation.options import EvalOptions
from ..evaluation.test_sets import open_test_sets
from ..models.recogniser import Recogniser
from ..reading.readers import Reader, Text
from .config import TrainConfig, TrainPlace
from .processes import Processes


class Validation:
    """The validation sets of a run, opened before its first step."""

    def __init__(
        self,
        config: TrainConfig,
        place: TrainPlace,
        processes: Processes,
        recogniser: Recogniser,
    ) -> None:
        """Open the sets.

        Raises:
            DataError: they cannot be used.
        """
        self._processes, self._recogniser = processes, recogniser
        self._precision = config.precision
        self._sets = open_test_sets(place.val_data, config.charset, config.max_label_length)

    @property
    def num_samples(self) -> dict[str, int]:
        """How many samples of each set count.

        Scores in best.pt are comparable only on the same validation samples.
        """
        return {test_set.name: len(test_set.pictures) for test_set in self._sets}

    def read(self, stop: Sequence[int]) -> tuple[WordCounts, int]:
        """Read every set. All processes must call this.

        Returns:
            What was read, and 0; or the signal that is in `stop` of some process: reading ends
            with the batch in which it came.
        """
        rank, world_size = self._processes.rank, self._processes.world_size
        reader = _StoppableReader(self._recogniser.eval(), self._precision, stop)
        shares = [test_set.share(rank, world_size) for test_set in self._sets]
        try:
            read = evaluate_sets(reader, shares).counts, 0
        except Interrupted as e:
            # The others have to know; they are reading, or wait for this process's counts.
            read = WordCounts(), e.signal_number
        counts, signals = zip(*self._processes.gather(read), strict=True)
        return sum(counts, WordCounts()), max(signals)


class _StoppableReader(Reader):
    """A reader that reads no further batch after a signal."""

    def __init__(self, recogniser: Recogniser, precision: str, stop: Sequence[int]) -> None:
        super().__init__(recogniser, batch_size=EvalOptions.batch_size, precision=precision)
        self._stop = stop

    def read_views(self, views: torch.Tensor) -> list[Text]:
        """Read a batch of views, unless a signal has come."""
        if self._stop:
            raise Interrupted(self._stop[0])
        with explained_memory(
            f"validation reads {self.batch_size} pictures at once; leave --val-data out, and "
            "measure the run with: clipocr eval RUN --data ROOT --batch-size N. --resume needs the "
            "same --val-data"
        ):
            return super().read_views(views)
