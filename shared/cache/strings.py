"""Lists of numbers and of strings as arrays of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from . import names
from .shards import Array, ArrayLayout


def flat_layout(name: str, length: int, dtype: str) -> ArrayLayout:
    """Return the layout of a plain list of numbers, such as string bytes or offsets."""
    return ArrayLayout(
        name=name,
        shape=(length,),
        dtype=dtype,
        chunk_rows=1 << 16,
        shard_rows=1 << 26,
        compressed=True,
    )


def strings_layouts(folder: str, num_strings: int, num_bytes: int) -> dict[str, ArrayLayout]:
    """Return the arrays of a string list: all UTF-8 bytes in a row, and where each begins."""
    return {
        "utf8": flat_layout(names.array_path(folder, "utf8"), num_bytes, "uint8"),
        "offsets": flat_layout(names.array_path(folder, "offsets"), num_strings + 1, "uint64"),
    }


def encode_strings(strings: Sequence[str]) -> dict[str, Array]:
    """Return the arrays of a string list: UTF-8 bytes in a row, and the offset of each."""
    encoded = [string.encode() for string in strings]
    lengths = np.fromiter((len(e) for e in encoded), np.uint64, len(encoded))
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)])
    return {"utf8": np.frombuffer(b"".join(encoded), np.uint8), "offsets": offsets}


def decode_strings(utf8: Array, offsets: Array) -> list[str]:
    """Invert `encode_strings`."""
    encoded, bounds = utf8.tobytes(), offsets.tolist()
    return [encoded[a:b].decode() for a, b in pairwise(bounds)]
