"""Doing the next things while the present one is used, in order and in bounded memory."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from .errors import DataError, UsageError
from .interrupts import collected, kept_from_workers

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def process_pool(num_processes: int) -> Iterator[Executor]:
    """Yield worker processes that leave ctrl-C to this one, and end when it ends.

    Spawned, not forked: this process may have threads, open LMDBs and a CUDA context.

    Raises:
        DataError: a worker died.
        UsageError: workers cannot be started here.
    """
    try:
        with kept_from_workers():
            # Here, or the first worker would start the process that cleans up after workers.
            resource_tracker.ensure_running()
        context = _WorkerContext()
        executor = ProcessPoolExecutor(
            num_processes, mp_context=context, initializer=_end_with_parent
        )
    except OSError as e:
        # Their locks are files there; the error names none.
        raise UsageError(
            f"worker processes cannot be started: /dev/shm: {e.strerror}; let it be written, or do "
            "without them by --jobs 1 (of cache build: --workers 0)"
        ) from e
    is_sound = False
    try:
        yield executor
        is_sound = True
    except BrokenProcessPool as e:
        raise DataError(
            "a worker process died; most likely memory ran out, or an LMDB is damaged (look for "
            "one with: clipocr data check)"
        ) from e
    finally:
        # After a failure nobody waits for work that nobody wants. Killed, because a worker that is
        # still starting when this process is gone ends with a traceback of its own.
        if not is_sound:
            for worker in context.workers:
                if worker.pid is not None:
                    worker.kill()
        executor.shutdown(wait=is_sound, cancel_futures=True)


class _Worker(SpawnProcess):
    """A process that ctrl-C does not reach, not even while it starts."""

    def start(self) -> None:
        # A signal waits: a worker whose parent stops between starting it and telling it what to do
        # ends with a traceback of its own.
        with collected("") as came, kept_from_workers():
            super().start()
        if came:
            signal.raise_signal(came[0])


class _WorkerContext(SpawnContext):
    """What starts a worker when it is needed, from whatever thread needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[_Worker] = []

    def Process(self, *args: Any, **kwargs: Any) -> _Worker:  # type: ignore[override]
        """Return a worker that is not started yet."""
        self.workers.append(_Worker(*args, **kwargs))
        return self.workers[-1]


def _end_with_parent() -> None:
    """Make a worker end when its parent was killed; it would wait for work for ever."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def take_idle_time_only() -> None:
    """Give the calling thread the lowest priority; only Linux has priorities per thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def map_ahead(
    executor: Executor, work: Callable[[_Item], _Result], items: Iterable[_Item], depth: int
) -> Iterator[_Result]:
    """Yield `work(item)` in order, with up to `depth` further items in the making."""
    futures: deque[Future[_Result]] = deque()
    try:
        for item in items:
            futures.append(executor.submit(work, item))
            if len(futures) > depth:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()


def one_ahead(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield items, each after the next one has been made, on the thread that asks."""
    held: list[_Item] = []
    for item in items:
        yield from held
        held = [item]
    yield from held


def map_on_processes(
    work: Callable[[_Item], _Result], items: Iterable[_Item], num_processes: int
) -> Iterator[_Result]:
    """Yield `work(item)` in order, from that many processes; of one, from this process."""
    if num_processes == 1:
        yield from map(work, items)
        return
    with process_pool(num_processes) as pool:
        yield from map_ahead(pool, work, items, 4 * num_processes)


def iterate_ahead(items: Iterator[_Item], depth: int) -> Iterator[_Item]:
    """Yield `items`, computed on a thread of their own up to `depth` ahead."""
    end = object()
    with ThreadPoolExecutor(1) as executor:
        for item in map_ahead(executor, lambda _: next(items, end), iter(int, 1), depth):
            if item is end:
                return
            yield item  # type: ignore[misc]
