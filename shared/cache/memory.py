"""Memory that is used again: where data streams through, fresh pages cost more than filling them.

The kernel clears a page before it gives it away, and takes it back when a large array is freed. A
loader that reads into new arrays all the time spends more on that than on reading; into these it
reads as fast as memory is.
"""

from __future__ import annotations

import weakref
from collections import defaultdict

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class MemoryPool:
    """Lends blocks of memory, and takes each back when nothing refers to it any more.

    Holds as much as was ever lent at one time, each block rounded up to a power of two (what is
    beyond its end is never touched, and so takes no memory). Safe to share between threads.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Bytes]] = defaultdict(list)

    def take(self, num_bytes: int) -> Bytes:
        """Return a block with whatever was in it. Shape: (num_bytes,).

        It may be cut, viewed as another type and given to torch: it comes back after the last of
        all that was made of it without a copy is gone.
        """
        size = 1 << max(num_bytes - 1, 0).bit_length()
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        # Through a memoryview: NumPy lets views of views refer to the owner of the memory, here
        # that would be the block, but stops at an array whose memory is none of NumPy's.
        lent = np.frombuffer(block.data, np.uint8)
        weakref.finalize(lent, free.append, block).atexit = False
        return lent[:num_bytes]
