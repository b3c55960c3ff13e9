"""All rows of an array, for whoever gathers single ones by number.

Those of a cache folder stay in their files, which are mapped into memory: processes that read the
same table share its pages. A mapped file must not be written to. Nothing here does: what replaces a
file of a cache is renamed over it, which leaves a mapped one as it was.

Shapes: N rows, C chunks of a shard, R rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class RowTable:
    """Rows that lie in the equal chunks of one or more shards."""

    def __init__(self, shards: Sequence[Array], shape: tuple[int, ...], dtype: npt.DTypeLike):
        """Take the shards as rows of bytes.

        Args:
            shards: All full but the last. Each of dtype V, an item per row. Shape: (C, R).
            shape: (N, ...).
            dtype: Of a row's elements.
        """
        self._shards = list(shards)
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)

    @classmethod
    def of(cls, values: Array) -> RowTable:
        """Return the table of an array in memory."""
        values = np.ascontiguousarray(values)
        row_bytes = values.nbytes // max(len(values), 1)
        rows = np.frombuffer(values.data.cast("B"), f"V{row_bytes}") if values.size else values[:0]
        return cls([rows.reshape(1, -1)], values.shape, values.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __getitem__(self, where: int | Array | slice) -> Array:
        """Return rows by number. Shape: (...) -> (..., ...)."""
        numbers = np.arange(*where.indices(len(self))) if isinstance(where, slice) else where
        out = np.empty((*np.shape(numbers), *self.shape[1:]), self.dtype)
        self.take(np.asarray(numbers), out)
        return out

    def take(self, where: Array, out: Array) -> None:
        """Copy rows by number into `out`, which is contiguous. Shape: (...) -> (..., ...)."""
        if not where.size:
            return
        numbers = where.reshape(-1)
        # As items of bytes: NumPy copies each at once, in half of the time that it takes for rows
        # of elements.
        rows = np.frombuffer(out.data.cast("B"), self._shards[0].dtype)
        if len(self._shards) == 1:
            rows[:] = _rows_of(self._shards[0], numbers)
            return
        shard_rows = self._shards[0].size
        shard_of = numbers // shard_rows
        for shard_idx, shard in enumerate(self._shards):
            here = np.flatnonzero(shard_of == shard_idx)
            if len(here):
                rows[here] = _rows_of(shard, numbers[here] - shard_idx * shard_rows)


def _rows_of(shard: Array, numbers: Array) -> Array:
    num_chunks, chunk_rows = shard.shape
    is_one = num_chunks == 1
    rows: Array = shard[0][numbers] if is_one else shard[np.divmod(numbers, chunk_rows)]
    return rows
