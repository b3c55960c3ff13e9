"""Validation at the end of an epoch, each process on its share of every set."""

from __future__ import annotations

from ..evaluation.evaluate import evaluate_sets
from ..evaluation.metrics import Figures, WordCounts
from ..evaluation.options import EvalOptions
from ..evaluation.test_sets import open_test_sets
from ..models.recogniser import Recogniser
from ..reading.readers import Reader
from .config import TrainConfig, TrainPlace
from .processes import Processes


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

    def figures(self, recogniser: Recogniser) -> Figures:
        """Read every set. All processes must call this."""
        rank, world_size = self._processes.rank, self._processes.world_size
        reader = Reader(
            recogniser.eval(), batch_size=EvalOptions.batch_size, precision=self._precision
        )
        counts = evaluate_sets(reader, [s.share(rank, world_size) for s in self._sets]).counts
        return sum(self._processes.gather(counts), WordCounts()).figures
