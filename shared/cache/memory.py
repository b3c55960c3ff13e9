"""Blocks of memory that are used again, because fresh pages cost more than filling them.

The kernel clears a page before a process gets it, and takes it back when a large array is freed. A
loader that reads into new arrays spends more time on that than on reading.
"""

from __future__ import annotations

import weakref
from collections import defaultdict

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class MemoryPool:
    """Lends blocks of memory, and takes each back when nothing refers to it any more.

    It holds as much as was ever lent at one time. Each block is rounded up to a power of two; what
    is beyond the asked size is never touched, so it takes no memory. Safe to share between threads.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Bytes]] = defaultdict(list)

    def take(self, num_bytes: int) -> Bytes:
        """Return a block with whatever was in it. Shape: (num_bytes,).

        It may be cut, viewed as another type and given to torch: it comes back when the last array
        or tensor that shares its memory is gone.
        """
        size = 1 << max(num_bytes - 1, 0).bit_length()
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        # Through a memoryview, because NumPy makes a view of a view refer to the owner of the
        # memory, which would be `block`; it stops at an array over memory that is not NumPy's.
        lent = np.frombuffer(block.data, np.uint8)
        weakref.finalize(lent, free.append, block).atexit = False
        return lent[:num_bytes]
