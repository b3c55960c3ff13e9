"""The order of an epoch: a pure function of the seed and the epoch, cut into lanes.

Chunks are permuted, and the rows of each chunk. That stream is cut into 64 lanes of equal length,
and training takes one row from each lane in turn:

    stream   | chunk 7 | chunk 2 | chunk 9 | chunk 0 | chunk 4 | ...
    lanes    |--- lane 0 ---|--- lane 1 ---|--- lane 2 ---|  ...
    order    lane 0's first row, lane 1's first row, ..., lane 63's, lane 0's second row, ...

A lane begins within its part of the stream, lane i with i / 64 of a chunk behind it, and wraps
around: if all began with a new chunk, all would go on to the next one in the same batch.

So a batch mixes rows of as many chunks as there are lanes, while only one chunk per lane has to be
in memory; and a process that serves every W-th lane reads every W-th part of the cache, yet any
number of processes train on the same global batches. Where a row stands is arithmetic: nothing is
read, and nothing drawn, to begin in the middle.

Shapes: C chunks, P places.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ...shared.hashing import mix

NUM_LANES = 64
"""Also the most processes that can share the work."""

_Ints = npt.NDArray[np.int64]


class EpochOrder:
    """Says which row stands at each place of an epoch."""

    def __init__(self, seed: int, epoch: int, chunk_sizes: _Ints) -> None:
        """Permute the chunks.

        Args:
            seed: Of the run.
            epoch: From 0.
            chunk_sizes: Usable rows of each chunk. Shape: (C,).
        """
        self._key = (seed, 1, epoch)
        self._sizes, self._size = chunk_sizes, int(chunk_sizes.max())
        self._chunks = np.argsort(mix(seed, 0, epoch, np.arange(len(chunk_sizes))), kind="stable")
        self._stops = np.cumsum(chunk_sizes[self._chunks])
        self.num_rows = int(self._stops[-1])
        # Chunks are drawn on in many batches, one after another in each lane.
        self._permuted = lru_cache(maxsize=4 * NUM_LANES)(self._permute)

    def locate(self, places: _Ints) -> tuple[_Ints, _Ints]:
        """Return the chunk, and the usable row in it, at each place. Shape: (P,) -> (P,) twice."""
        lanes = lanes_of(places)
        short, num_longer = divmod(self.num_rows, NUM_LANES)
        starts = lanes * short + np.minimum(lanes, num_longer)
        turns = places // NUM_LANES + (lanes * self._size // NUM_LANES - starts) % self._size
        stream = starts + turns % (short + (lanes < num_longer))
        positions = np.searchsorted(self._stops, stream, side="right")
        chunks = self._chunks[positions]
        ranks = stream - (self._stops[positions] - self._sizes[chunks])
        rows = [self._permuted(int(c))[r] for c, r in zip(chunks, ranks, strict=True)]
        return chunks, np.asarray(rows, np.int64)

    def _permute(self, chunk: int) -> _Ints:
        keys = mix(self._key[0], *self._key[1:], chunk, np.arange(self._sizes[chunk]))
        return np.argsort(keys, kind="stable")


def lanes_of(places: _Ints) -> _Ints:
    """Return the lane each place belongs to. Shape: (P,) -> (P,)."""
    return places % NUM_LANES
