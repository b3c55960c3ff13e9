"""The codec ``klt``: as few bytes a token as the features need, by transform coding.

A token is standardised, the mean of its position is removed, and what is left is written in the
basis in which the components of its image array are uncorrelated (Karhunen and Loeve). Each
component gets 0 to 8 bits, more of them the larger its variance, and is kept as the nearest of the
levels that lose least of a Gaussian of its deviation. Basis, means and bits come from a sample of
the cache's own rows, and are published with the cache, one table for each image array:

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
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .codec import MAX_BITS

if TYPE_CHECKING:
    import torch

    _Coder = Callable[[torch.Tensor], torch.Tensor]

Doubles = npt.NDArray[np.float64]
TableValues = npt.NDArray[np.float32]

NUM_LEVELS = 2 ** (MAX_BITS + 1) - 2
"""Of all codes of 1 to 8 bits together; those of b bits begin at number 2^b - 2."""
_NEWTON_STEPS = 20
_NOTHING = 1e-9
"""Share of the variance below which a component is rounding error. One component of standardised
tokens always is, because the values of such a token add up to zero."""


def num_table_rows(num_tokens: int, width: int) -> int:
    """Return the rows of an image array's table."""
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
    """Give each bit to the component whose error it lowers most.

    That is the best allocation, because each further bit of a component gains less.

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
    # Components of equal variance may have received their bits in another order.
    return np.sort(bits)[::-1]


@dataclass(frozen=True, kw_only=True)
class KltBasis:
    """Mean and principal components of an image array's standardised tokens, from a sample."""

    mean: Doubles
    """Of each position. Shape: (T, D)."""
    variances: Doubles
    """Of the components, falling. Shape: (D,)."""
    directions: Doubles
    """The components, one a row, each of length 1. Shape: (D, D)."""

    def table(self, record_bytes: int) -> TableValues:
        """Return the table that keeps tokens in P bytes. Shape: (`num_table_rows`, D)."""
        width = len(self.variances)
        bits = allocate_bits(self.variances, 8 * record_bytes)
        levels = np.zeros((_num_level_rows(width), width))
        levels.flat[:NUM_LEVELS] = [v for b in range(1, MAX_BITS + 1) for v in gaussian_levels(b)]
        kept = bits > 0
        deviations = np.sqrt(self.variances) * kept
        parts = [self.mean, deviations[None], bits[None], levels, self.directions * kept[:, None]]
        return np.concatenate(parts).astype(np.float32)


def fit_basis(count: int, sums: Doubles, products: Doubles) -> KltBasis:
    """Return the basis of an image array from the moments of its standardised tokens.

    Args:
        count: Rows of the sample.
        sums: Sum over rows. Shape: (T, D).
        products: Sum over rows and positions of each token times itself. Shape: (D, D).
    """
    num_tokens, width = sums.shape
    mean = sums / max(count, 1)
    covariance = (products - count * mean.T @ mean) / max(count * num_tokens, 1)
    variances, basis = np.linalg.eigh((covariance + covariance.T) / 2)
    variances, basis = variances[::-1].clip(0), basis[:, ::-1].T
    # The sign of a component is arbitrary; choose it so that the largest entry is positive.
    largest = np.abs(basis).argmax(axis=1)
    directions = basis * np.sign(basis[np.arange(width), largest])[:, None]
    return KltBasis(mean=mean, variances=variances, directions=directions)


def klt_coders(table: TableValues, record_bytes: int) -> tuple[_Coder, _Coder]:
    """Return what encodes and what decodes by a table, on whatever device the numbers are."""

    @functools.cache
    def on(device: torch.device) -> KltTable:
        return KltTable(table, record_bytes, device)

    def encode(standard: torch.Tensor) -> torch.Tensor:
        return on(standard.device).encode(standard)

    def decode(records: torch.Tensor) -> torch.Tensor:
        return on(records.device).decode(records)

    return encode, decode


class KltTable:
    """The table of an image array, ready to encode and decode on one device.

    Components are rows and tokens columns (K, B T), because what differs by component (where its
    bits are, how many, its levels) is then applied to a whole row at once: all of it takes an
    eighth of the time of the change of basis.
    """

    def __init__(self, table: TableValues, record_bytes: int, device: torch.device) -> None:
        import torch

        num_tokens = len(table) - num_table_rows(0, table.shape[1])
        values = torch.from_numpy(table.astype(np.float64)).to(device)
        rest = values[num_tokens:]
        bits = rest[1].long()[rest[1] > 0]
        num_kept = len(bits)
        deviations = rest[0, :num_kept, None]
        num_level_rows = _num_level_rows(table.shape[1])
        levels = rest[2 : 2 + num_level_rows].flatten()[:NUM_LEVELS]
        directions = rest[2 + num_level_rows :][:num_kept]
        self._record_bytes = record_bytes
        # Two bytes, high one first, hold any code: those from `first_byte` on, and `shift` bits of
        # them come after it.
        start = bits.cumsum(0) - bits
        self._first_byte = start // 8
        self._shift = (16 - start % 8 - bits).short()[:, None]
        self._mask = (2**bits - 1).short()[:, None]
        self._first_level = (2**bits - 2).short()[:, None]
        self._analysis = directions / deviations
        self._origin = (self._analysis @ values[:num_tokens].T)[:, None]
        self._runs = []
        for b, run in itertools.groupby(range(num_kept), key=bits.tolist().__getitem__):
            rows = list(run)
            of_bits = levels[2**b - 2 : 2 ** (b + 1) - 2]
            self._runs.append((slice(rows[0], rows[-1] + 1), (of_bits[1:] + of_bits[:-1]) / 2))
        self._levels32 = levels.float()
        self._synthesis32 = (deviations * directions).float()
        self._mean32 = values[:num_tokens].float()

    def encode(self, standard: torch.Tensor) -> torch.Tensor:
        """Shape: (B, T, D) double -> (B, T, P) uint8."""
        import torch

        components = self._analysis @ standard.flatten(0, 1).T
        components.view(len(components), *standard.shape[:2]).sub_(self._origin)
        codes = torch.empty_like(components, dtype=torch.int32)
        for rows, bounds in self._runs:
            codes[rows] = torch.bucketize(components[rows], bounds, out_int32=True)
        # Codes share no bit, so their sum is their union. Row p + 1: of the codes that begin in
        # byte p, in the high half; their ends in the byte that follows, in the low half.
        words = codes.new_zeros(self._record_bytes + 1, codes.shape[1])
        words.index_add_(0, self._first_byte + 1, codes << self._shift)
        records = ((words[1:] >> 8) + (words[:-1] & 0xFF)).to(torch.uint8)
        return records.T.contiguous().view(*standard.shape[:2], self._record_bytes)

    def decode(self, records: torch.Tensor) -> torch.Tensor:
        """Shape: (B, T, P) uint8 -> (B, T, D) float32."""
        import torch

        # int16 is enough: the sign bit that `>>` copies in is masked off below.
        stored = records.flatten(0, 1).T.to(torch.int16).contiguous()
        words = stored << 8
        words[:-1] |= stored[1:]
        codes = words.index_select(0, self._first_byte)
        codes >>= self._shift
        codes &= self._mask
        codes += self._first_level
        components = self._levels32.index_select(0, codes.int().flatten()).view(codes.shape)
        features = components.T @ self._synthesis32
        return features.view(*records.shape[:2], -1).add_(self._mean32)
