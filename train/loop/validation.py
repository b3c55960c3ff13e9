"""Validation at the end of an epoch, each process on its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...shared.device import autocast
from ...shared.errors import explained_memory
from ...shared.interrupts import Interrupted
from ..data.loader import CacheLoader
from ..evaluation.evaluate import evaluate_sets
from ..evaluation.metrics import WordCounts
from ..evaluation.options import EvalOptions
from ..evaluation.results import Evaluation
from ..evaluation.test_sets import open_test_sets
from ..methods.trainee import Trainee
from ..models.recogniser import Recogniser
from ..reading.readers import Reader, Text
from .config import TrainConfig, TrainPlace
from .processes import Processes

_NUM_EXAMPLES = 24


class Example(NamedTuple):
    """A picture that was read, for people to look at."""

    picture: Any
    """As PIL has it."""
    label: str
    text: str
    """As the charset has it, like the label."""


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What a validation came to."""

    of_sets: Mapping[str, WordCounts]
    """Sums over the words of each set, by its name."""
    examples: tuple[Example, ...] = ()

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy and 1-NED over all words, and where there are several sets over each of them."""
        scores = {}
        of_sets = self.of_sets if len(self.of_sets) > 1 else {}
        for name, counts in {"": sum(self.of_sets.values(), WordCounts()), **of_sets}.items():
            ending = f"/{name}" if name else ""
            figures = counts.figures
            scores[f"val/accuracy{ending}"] = figures.accuracy
            scores[f"val/1-NED{ending}"] = figures.one_minus_ned
        return scores


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

    def read(self, stop: Sequence[int]) -> tuple[ValidationResult, int]:
        """Read everything. All processes must call this.

        Returns:
            What was read, the examples from this process's share, and 0; or the signal that is in
            `stop` of some process: reading ends with the batch in which it came.
        """
        signal_number = 0
        try:
            result = self._read(stop)
        except Interrupted as e:
            # The others have to know; they are reading, or wait for this process's counts.
            result, signal_number = ValidationResult(of_sets={}), e.signal_number
        shares, signals = zip(*self._processes.gather((result.of_sets, signal_number)), strict=True)
        of_sets = {
            name: sum((share.get(name, WordCounts()) for share in shares), WordCounts())
            for name in result.of_sets
        }
        return ValidationResult(of_sets=of_sets, examples=result.examples), max(signals)

    def _read(self, stop: Sequence[int]) -> ValidationResult:
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

    def _read(self, stop: Sequence[int]) -> ValidationResult:
        reader = _StoppableReader(self._recogniser.eval(), self._precision, stop)
        share = self._processes.rank, self._processes.world_size
        read = evaluate_sets(reader, [s.share(*share) for s in self._sets])
        return ValidationResult(
            of_sets={result.name: result.counts for result in read.sets},
            # The first process alone shows them.
            examples=tuple(_examples(read)) if self._processes.is_first else (),
        )


class HeldOutValidation(Validation):
    """The labels that a run does not learn, read in their features."""

    def __init__(
        self, config: TrainConfig, processes: Processes, trainee: Trainee, loader: CacheLoader
    ) -> None:
        """Take what reads, and the loader of the held-out labels."""
        super().__init__(processes)
        self._precision, self._trainee, self._loader = config.precision, trainee, loader

    def _read(self, stop: Sequence[int]) -> ValidationResult:
        counts, trainee = WordCounts(), self._trainee.eval()
        for batch in self._loader.epoch(0):
            if stop:
                raise Interrupted(stop[0])
            with torch.no_grad(), autocast(batch.device, self._precision):
                read = trainee.read(batch)
            for text, label in zip(read, batch.labels, strict=True):
                counts.add(text, label, None)
        return ValidationResult(of_sets={"held-out labels": counts})


def _examples(read: Evaluation) -> Iterator[Example]:
    """Yield words of every set, evenly drawn."""
    per_set = -(-_NUM_EXAMPLES // len(read.sets))
    for result in read.sets:
        words = [word for word in result.words if word.problem is None]
        for word in words[:: max(len(words) // per_set, 1)][:per_set]:
            yield Example(
                result.test_set.load(word), label=word.adapted_label, text=word.adapted_text
            )


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
            "measure the run with: clipocr eval RUN --data ROOT --batch-size N. A run that goes on "
            "keeps its --val-data"
        ):
            return super().read_views(views)
