"""The signals that end a command, and how it ends: by one line and 128 plus the signal's number.

Ctrl-C, SIGTERM, a closed terminal (SIGHUP) and a scheduler's warning (SIGUSR1) raise `Interrupted`
while a command works, so that it cleans up. Before and after the work they end the process at once:
there is nothing to clean up. This module imports nothing heavy, because it is at work before
anything heavy is imported.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """A signal ends the command; `signal_number` says which."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


def ending(signal_number: int) -> tuple[str, int]:
    """Return what a command that a signal ends says, and its exit code."""
    if signal_number == signal.SIGINT:
        return "Interrupted.", 128 + signal_number
    return f"Stopped by {signal.Signals(signal_number).name}.", 128 + signal_number


class _Command:
    """The command of this process."""

    is_working = False
    caught: int | None = None
    """The signal that has been raised; whatever the command does with it, it ends by it."""


def install() -> None:
    """Handle the signals for the rest of the process; for a program, not for a library."""
    for number in _ours():
        signal.signal(number, _interrupt)
    sys.unraisablehook = _lost


@contextmanager
def working() -> Iterator[None]:
    """Let signals raise `Interrupted` while the block runs, if they are handled at all.

    Raises:
        Interrupted: a signal came, whatever the block made of it: code that is interrupted may
            raise another error, or swallow this one.
    """
    _Command.is_working, _Command.caught = True, None
    try:
        yield
    finally:
        _Command.is_working = False
        if _Command.caught is not None:
            raise Interrupted(_Command.caught) from None


@contextmanager
def collected(acknowledgement: str) -> Iterator[list[int]]:
    """Collect the signals in a list while the block runs, which ends when it likes.

    The first one is acknowledged on stderr at once, because ending may take a while; an empty
    acknowledgement says nothing. A second ctrl-C does kill. A second SIGTERM does not: under Slurm
    and torchrun both the scheduler and the agent send one.
    """
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Only the main thread may decide on signals, and they go there anyway.
        return
    before = {number: signal.getsignal(number) for number in _ours()}

    def collect(number: int, _: FrameType | None) -> None:
        if not stop and acknowledgement:
            _leave_dead_terminal()
            with suppress(OSError):
                # Not by sys.stderr, whose buffer may be in use.
                os.write(2, f"\n{signal.Signals(number).name}: {acknowledgement}\n".encode())
        stop.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, collect)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def kept_from_workers() -> Iterator[None]:
    """Let processes that the block starts never see the signals but SIGTERM, which ends workers.

    A terminal and a scheduler send them to every process. Blocked, because what is blocked is so
    from a new process's first moment on, and in whatever thread starts it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP_SIGNALS} - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ours() -> list[int]:
    """Return the signals that may be handled: not what is ignored, as by nohup, or is not Python's.

    The latter as by `faulthandler.register`.
    """
    return [n for n in STOP_SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]


def _interrupt(number: int, _: FrameType | None) -> None:
    _leave_dead_terminal()
    is_second = _Command.caught is not None
    if not _Command.is_working or (is_second and number == signal.SIGINT):
        _end_at_once(number)
    # A second SIGTERM is no hurry: under Slurm and torchrun the scheduler and the agent send one.
    if not is_second:
        _Command.caught = number
        raise Interrupted(number)


def _lost(unraisable: Any) -> None:
    """End by a signal that nobody can catch, because it was raised in a finalizer."""
    if isinstance(unraisable.exc_value, Interrupted):
        _end_at_once(unraisable.exc_value.signal_number)
    if _Command.caught is not None:
        return  # Of what was interrupted while it was made, such as a bar.
    sys.__unraisablehook__(unraisable)


def _end_at_once(number: int) -> NoReturn:
    line, code = ending(number)
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
    os._exit(code)


def _leave_dead_terminal() -> None:
    """Send what is written to a terminal that was closed nowhere: every write there fails."""
    for descriptor in (1, 2):
        with suppress(OSError):
            is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if is_device and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
