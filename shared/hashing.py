"""Random numbers that are pure functions of what they belong to.

They order rows and batches for good, so they must be the same in every version of every library;
NumPy does not promise that of its own streams. This is SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]


def mix(seed: int, *keys: npt.ArrayLike) -> UInt64s:
    """Return well-mixed 64-bit numbers of a seed and keys, broadcast against one another."""
    mixed = _splitmix64(np.asarray([seed % 2**64], np.uint64))
    for key in keys:
        mixed = _splitmix64(mixed ^ np.asarray(key).astype(np.uint64))
    return mixed


def _splitmix64(state: UInt64s) -> UInt64s:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64s = z ^ (z >> np.uint64(31))
    return mixed
