"""The codec ``klt``: as few bytes a token as the features need, by transform coding.

A token is standardised, the mean of its position is removed, and what is left is turned into the
basis of its tap in which components are uncorrelated (Karhunen and Loeve). Each component gets 0 to
8 bits, as many as its variance is worth, and is kept as the nearest of the levels that lose least
of a Gaussian of its deviation. Basis, means and bits come from a sample of the cache's own rows,
and are published with the cache: one array per tap,

    rows      T           mean of each position
              1           deviation of each component
              1           bits of each component, falling
              510 / D     rounded up: the levels of 1 bit for deviation 1, from the lowest, those
                          of 2 bits, ... of 8 bits, one after another through these rows
              D           the components, largest variance first; 0 where there are no bits

A record is the codes of a token's components one after another, the highest bit of each first,
filled up with zeros to whole bytes.

Shapes: B rows, T tokens, D width, K components with bits, N tokens of the sample, P record bytes.
"""

from __future__ import annotations

import functools
import heapq
import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Doubles = npt.NDArray[np.float64]
Table = npt.NDArray[np.float32]

MAX_BITS = 8
NUM_LEVELS = 2 ** (MAX_BITS + 1) - 2
"""Of all codes of 1 to 8 bits together; those of b bits begin at number 2^b - 2."""
_NEWTON_STEPS = 20
_NOTHING = 1e-9
"""Share of the variance below which a component is rounding: of a standardised token one always is,
for its values add up to zero."""


def num_table_rows(num_tokens: int, width: int) -> int:
    """Return the rows of a tap's table."""
    return num_tokens + 2 + _num_level_rows(width) + width


def _num_level_rows(width: int) -> int:
    num_rows: int = -(-NUM_LEVELS // width)
    return num_rows


@functools.cache
def gaussian_levels(num_bits: int) -> tuple[float, ...]:
    """Return the 2^b levels that lose least of a Gaussian of unit variance (Lloyd and Max).

    Each is the mean of its cell, and cells end half-way between levels. Solved by Newton's method
    from where many levels lie: as the quantiles of a Gaussian of deviation sqrt(3) do.
    """
    half = 2 ** (num_bits - 1)
    wide = NormalDist(sigma=math.sqrt(3))
    levels = np.asarray([wide.inv_cdf(0.5 + (i + 0.5) / (2 * half)) for i in range(half)])
    for _ in range(_NEWTON_STEPS):
        low, high, density, mass = _cells(levels)
        means = -np.diff(density) / mass
        # How a mean moves with the ends of its cell, and an end with the levels beside it.
        by_low = density[:-1] * (means - low) / mass / 2
        by_high = density[1:-1] * (high[:-1] - means[:-1]) / mass[:-1] / 2
        jacobian = np.eye(half) - np.diag(by_low[1:], -1) - np.diag(by_high, 1)
        jacobian -= np.diag(np.append(by_high, 0) + np.insert(by_low[1:], 0, 0))
        levels = levels - np.linalg.solve(jacobian, levels - means)
    # Cut to what is stable on every machine.
    positive = [round(level, 6) for level in levels.tolist()]
    return (*(-level for level in reversed(positive)), *positive)


def _cells(levels: Doubles) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Return low and high ends, densities at all ends, and masses of the cells above zero."""
    ends = np.asarray([0.0, *((levels[1:] + levels[:-1]) / 2), math.inf])
    density = np.exp(-ends * ends / 2) / math.sqrt(2 * math.pi)
    beyond = np.asarray([math.erfc(x / math.sqrt(2)) / 2 for x in ends.tolist()])
    return ends[:-1], ends[1:], density, -np.diff(beyond)


@functools.cache
def gaussian_distortion(num_bits: int) -> float:
    """Return the mean square that b bits lose of a Gaussian of unit variance."""
    if num_bits == 0:
        return 1.0
    levels = np.asarray(gaussian_levels(num_bits)[2 ** (num_bits - 1) :])
    *_, mass = _cells(levels)
    return 1.0 - 2 * float((levels**2 * mass).sum())


def allocate_bits(variances: Doubles, num_bits: int) -> npt.NDArray[np.int64]:
    """Give each bit to the component that gains most by it; the best there is, for gains fall.

    Args:
        variances: Of the components, falling. Shape: (D,).
        num_bits: To give away.

    Returns:
        Bits of each component, falling. Shape: (D,).
    """
    gains = [gaussian_distortion(b) - gaussian_distortion(b + 1) for b in range(MAX_BITS)]
    least = _NOTHING * float(variances.sum())
    bits = np.zeros(len(variances), np.int64)
    wanting = [(-v * gains[0], k) for k, v in enumerate(variances.tolist()) if v > least]
    heapq.heapify(wanting)
    for _ in range(num_bits):
        if not wanting:
            break
        _, k = heapq.heappop(wanting)
        bits[k] += 1
        if bits[k] < MAX_BITS:
            heapq.heappush(wanting, (-variances[k] * gains[bits[k]], k))
    # Equal variances may have been served out of order.
    return np.sort(bits)[::-1]


def fit_table(count: int, sums: Doubles, products: Doubles, record_bytes: int) -> Table:
    """Return the table of a tap from the moments of its standardised tokens.

    Args:
        count: Rows of the sample.
        sums: Sum over rows. Shape: (T, D).
        products: Sum over rows and positions of each token times itself. Shape: (D, D).
        record_bytes: P.

    Returns:
        Shape: (`num_table_rows`, D).
    """
    num_tokens, width = sums.shape
    mean = sums / max(count, 1)
    covariance = (products - count * mean.T @ mean) / max(count * num_tokens, 1)
    variances, basis = np.linalg.eigh((covariance + covariance.T) / 2)
    variances, basis = variances[::-1].clip(0), basis[:, ::-1].T
    # Of a component the sign is free; the largest entry counts upwards.
    largest = np.abs(basis).argmax(axis=1)
    basis = basis * np.sign(basis[np.arange(width), largest])[:, None]
    bits = allocate_bits(variances, 8 * record_bytes)
    levels = np.zeros((_num_level_rows(width), width))
    levels.flat[:NUM_LEVELS] = [v for b in range(1, MAX_BITS + 1) for v in gaussian_levels(b)]
    kept = bits > 0
    parts = [mean, (np.sqrt(variances) * kept)[None], bits[None], levels, basis * kept[:, None]]
    return np.concatenate(parts).astype(np.float32)


class KltTable:
    """A tap's table, ready to encode and decode on one device."""

    def __init__(self, table: Table, num_tokens: int, record_bytes: int, device: torch.device):
        import torch

        values = torch.from_numpy(table.astype(np.float64)).to(device)
        rest = values[num_tokens:]
        self._bits = rest[1].long()[rest[1] > 0]
        num_kept = len(self._bits)
        self._mean = values[:num_tokens]
        self._deviation = rest[0, :num_kept]
        num_level_rows = _num_level_rows(table.shape[1])
        self._all_levels = rest[2 : 2 + num_level_rows].flatten()[:NUM_LEVELS]
        self._basis = rest[2 + num_level_rows :][:num_kept]
        self._record_bytes = record_bytes
        start = self._bits.cumsum(0) - self._bits
        self._first_byte = start // 8
        self._last_byte = (self._first_byte + 1).clamp(max=record_bytes - 1)
        # Two bytes, high one first, hold any code; this many bits of them come after it.
        self._shift = (16 - start % 8 - self._bits).int()
        self._mask = (2**self._bits - 1).int()
        self._offset = (2**self._bits - 2).int()
        self._all_levels32 = self._all_levels.float()
        self._mean32 = self._mean.float()
        self._scaled_basis32 = (self._deviation[:, None] * self._basis).float()

    def encode(self, standard: torch.Tensor) -> torch.Tensor:
        """Shape: (B, T, D) double -> (B, T, P) uint8."""
        import torch

        components = (standard - self._mean) @ self._basis.T / self._deviation
        codes = torch.zeros_like(components, dtype=torch.long)
        for b in range(1, MAX_BITS + 1):
            levels = self._all_levels[2**b - 2 : 2 ** (b + 1) - 2]
            those = (self._bits == b).nonzero().flatten()
            bounds = (levels[1:] + levels[:-1]) / 2
            codes[..., those] = torch.bucketize(components[..., those].contiguous(), bounds)
        of_bit = torch.arange(len(self._bits), device=codes.device).repeat_interleave(self._bits)
        ends = self._bits.cumsum(0)[of_bit]
        shifts = ends - 1 - torch.arange(len(of_bit), device=codes.device)
        bits = codes.new_zeros(*codes.shape[:-1], 8 * self._record_bytes)
        bits[..., : len(of_bit)] = codes.index_select(-1, of_bit) >> shifts & 1
        places = 2 ** torch.arange(7, -1, -1, device=codes.device)
        in_bytes = bits.view(*codes.shape[:-1], self._record_bytes, 8)
        records: torch.Tensor = (in_bytes * places).sum(dim=-1).to(torch.uint8)
        return records

    def decode(self, records: torch.Tensor) -> torch.Tensor:
        """Shape: (B, T, P) uint8 -> (B, T, D) float32."""
        high = records.index_select(-1, self._first_byte).int()
        low = records.index_select(-1, self._last_byte).int()
        codes = ((high << 8 | low) >> self._shift & self._mask) + self._offset
        components = self._all_levels32.index_select(0, codes.flatten()).view(codes.shape)
        return components @ self._scaled_basis32 + self._mean32
