"""How fast a run goes, and how long it waits for data."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

from ..data.batch import Batch


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
