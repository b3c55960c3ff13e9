"""Stopping a run so that it can go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequestedError(Exception):
    """SIGINT or SIGTERM arrived, and the run has been saved; `signal_number` says which."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them.

    A second ctrl-C does kill. A second SIGTERM does not: under Slurm and torchrun both the
    scheduler and the agent send one.
    """
    stop: list[int] = []

    def request(signal_number: int, _: FrameType | None) -> None:
        stop.append(signal_number)
        if signal_number == signal.SIGINT:
            signal.signal(signal_number, previous[signal_number])

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in previous:
            signal.signal(number, request)
    except ValueError:
        previous = {}  # Not the main thread: signals go elsewhere anyway.
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
