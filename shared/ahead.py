"""Doing the next things while the present one is used, in order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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


def iterate_ahead(items: Iterator[_Item], depth: int) -> Iterator[_Item]:
    """Yield `items`, computed on a thread of their own up to `depth` ahead."""
    end = object()
    with ThreadPoolExecutor(1) as executor:
        for item in map_ahead(executor, lambda _: next(items, end), iter(int, 1), depth):
            if item is end:
                return
            yield item  # type: ignore[misc]
