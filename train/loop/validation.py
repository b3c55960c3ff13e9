"""Validation at the end of an epoch, each process on its share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...shared.device import autocast
from ...shared.errors import explained_memory
from ...shared.interrupts import Interrupted
from ..data.loader import CacheLoader
from ..evaluation.evaluate import evaluate_sets
from ..evaluation.metrics import WordCounts
from ..evaluation.options import EvalOptions
from ..evaluation.test_sets import open_test_sets
from ..methods.trainee import Trainee
from ..models.recogniser import Recogniser
from ..reading.readers import Reader, Text
from .config import TrainConfig, TrainPlace
from .processes import Processes


class Validation:
    """Words to read after each epoch; a subclass says which."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    @property
    def num_samples(self) -> dict[str, int]:
        """How many samples of each set count, where it is not the cache and the config that say so.

        Scores in best.pt are comparable only on the same validation samples.
        """
        return {}

    def read(self, stop: Sequence[int]) -> tuple[WordCounts, int]:
        """Read everything. All processes must call this.

        Returns:
            What was read, and 0; or the signal that is in `stop` of some process: reading ends
            with the batch in which it came.
        """
        try:
            read = self._counts(stop), 0
        except Interrupted as e:
            # The others have to know; they are reading, or wait for this process's counts.
            read = WordCounts(), e.signal_number
        counts, signals = zip(*self._processes.gather(read), strict=True)
        return sum(counts, WordCounts()), max(signals)

    def _counts(self, stop: Sequence[int]) -> WordCounts:
        """Read this process's share, until a signal is in `stop`."""
        raise NotImplementedError


class PictureValidation(Validation):
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
        super().__init__(processes)
        self._precision, self._recogniser = config.precision, recogniser
        self._sets = open_test_sets(place.val_data, config.charset, config.max_label_length)

    @property
    def num_samples(self) -> dict[str, int]:
        """How many samples of each set count."""
        return {test_set.name: len(test_set.pictures) for test_set in self._sets}

    def _counts(self, stop: Sequence[int]) -> WordCounts:
        reader = _StoppableReader(self._recogniser.eval(), self._precision, stop)
        share = self._processes.rank, self._processes.world_size
        return evaluate_sets(reader, [s.share(*share) for s in self._sets]).counts


class HeldOutValidation(Validation):
    """The labels that a run does not learn, read in their features."""

    def __init__(
        self, config: TrainConfig, processes: Processes, trainee: Trainee, loader: CacheLoader
    ) -> None:
        """Take what reads, and the loader of the held-out labels."""
        super().__init__(processes)
        self._precision, self._trainee, self._loader = config.precision, trainee, loader

    def _counts(self, stop: Sequence[int]) -> WordCounts:
        counts, trainee = WordCounts(), self._trainee.eval()
        for batch in self._loader.epoch(0):
            if stop:
                raise Interrupted(stop[0])
            with torch.no_grad(), autocast(batch.device, self._precision):
                read = trainee.read(batch)
            for text, label in zip(read, batch.labels, strict=True):
                counts.add(text, label, None)
        return counts


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
