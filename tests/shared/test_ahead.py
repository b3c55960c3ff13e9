from __future__ import annotations

import errno
import multiprocessing.synchronize  # noqa: F401  (it wants the locks that a test takes away)
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import util

import pytest

from clipocr.shared.ahead import (
    _Worker,
    iterate_ahead,
    map_ahead,
    map_on_processes,
    take_idle_time_only,
)
from clipocr.shared.errors import UsageError
from clipocr.shared.interrupts import Interrupted


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_only_the_thread_that_asks_gives_way() -> None:
    before = priority()
    with ThreadPoolExecutor(1, initializer=take_idle_time_only) as patient:
        # Only Linux has priorities per thread.
        assert patient.submit(priority).result() == (19 if sys.platform == "linux" else before)
    with ThreadPoolExecutor(1) as plain:
        assert plain.submit(priority).result() == before
    assert priority() == before


def test_map_ahead_keeps_the_order_and_the_depth() -> None:
    drawn: list[int] = []

    def items() -> object:
        for item in range(6):
            drawn.append(item)
            yield item

    with ThreadPoolExecutor(3) as executor:
        results = map_ahead(executor, lambda item: item * item, items(), depth=2)
        assert next(results) == 0
        assert drawn == [0, 1, 2]
        assert list(results) == [1, 4, 9, 16, 25]


def test_iterate_ahead_passes_on_what_went_wrong() -> None:
    def items() -> object:
        yield 1
        raise LookupError("gone")

    ahead = iterate_ahead(items(), depth=1)
    assert next(ahead) == 1
    with pytest.raises(LookupError, match="gone"):
        next(ahead)


def test_a_machine_without_shared_memory_is_told_to_do_without_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("_multiprocessing.SemLock", refuse)
    with pytest.raises(UsageError, match=r"/dev/shm: Read-only file system; .* --jobs 1"):
        list(map_on_processes(str, range(9), 2))
    assert list(map_on_processes(str, range(2), 1)) == ["0", "1"]


def test_a_signal_waits_until_a_worker_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A signal that the starting thread blocks goes to another one, and is handled all the same."""
    spawn, is_over = util.spawnv_passfds, threading.Event()

    def interrupted(*args: object) -> int:
        pid: int = spawn(*args)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)
        return pid

    def raises(number: int, _frame: object) -> None:
        raise Interrupted(number)

    monkeypatch.setattr(util, "spawnv_passfds", interrupted)
    before = signal.signal(signal.SIGUSR1, raises)
    other = threading.Thread(target=is_over.wait)
    other.start()
    worker = _Worker(target=os.getpid)
    try:
        with pytest.raises(Interrupted):
            worker.start()
    finally:
        signal.signal(signal.SIGUSR1, before)
        is_over.set()
        other.join()
    worker.join()
    assert worker.exitcode == 0
    assert "Traceback" not in capfd.readouterr().err
