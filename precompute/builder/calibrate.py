"""What a codec has to know of the features, from a sample of the cache's own rows.

The sample is the first rows of the cache in view 0; rows were permuted, so it is a fair one. One
row in nine is judged by, and tables are fitted to the others: what is found then holds for rows
that nothing was fitted to. All builders of a cache have to go on with the same tables and choices,
though devices differ in the last bits: see `publish`.

Shapes: T image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ...shared.cache.codecs.choice import CodecChoice
from ...shared.cache.codecs.klt import KltBasis, fit_basis
from ...shared.cache.codecs.quantize import standardise
from ...shared.cache.schema import CacheSpec
from ...shared.cache.shards import Array
from ..inspect.choose import choose_codec
from ..teacher.clip import Teacher
from .scan import Scan
from .views import ChunkRows, ViewMaker

CALIBRATION_ROWS = 2304
_JUDGED_SHARE = 9


class Calibration:
    """Runs the teacher over the sample when it is first asked for something, and only then."""

    def __init__(self, spec: CacheSpec, scan: Scan, teacher: Teacher) -> None:
        self._spec, self._scan, self._teacher = spec, scan, teacher

    def run(self) -> None:
        """Run the teacher now, over all that `table` and `choose` need."""
        _ = self._bases, self._judged

    def table(self, tap: int, record_bytes: int) -> Array:
        """Return the table that keeps the tokens of a tap in so many bytes."""
        return self._bases[tap].table(record_bytes)

    def choose(self, tap: int, fidelity: float) -> CodecChoice:
        """Return the smallest codec that keeps a tap as well as ``auto:F`` asks.

        Raises:
            UsageError: none does, or there is no row to judge by.
        """
        return choose_codec(self._judged[tap], self._bases[tap], fidelity)

    @cached_property
    def _sample(self) -> npt.NDArray[np.int64]:
        return self._scan.order(self._spec.seed)[:CALIBRATION_ROWS]

    @cached_property
    def _bases(self) -> dict[int, KltBasis]:
        teacher = self._spec.teacher
        num_tokens, width = teacher.num_image_tokens, teacher.image_width
        moments = {tap: _Moments(num_tokens, width) for tap in teacher.image_taps}
        rows = self._sample[len(self._sample) // _JUDGED_SHARE :]
        for taps in self._features(rows, "calibration"):
            for tap, features in taps.items():
                moments[tap].add(features)
        return {tap: of_tap.fit() for tap, of_tap in moments.items()}

    @cached_property
    def _judged(self) -> dict[int, torch.Tensor]:
        rows = self._sample[: len(self._sample) // _JUDGED_SHARE]
        made = list(self._features(rows, "rows to judge by"))
        spec = self._spec.teacher
        none = torch.empty(0, spec.num_image_tokens, spec.image_width)
        return {
            tap: torch.cat([taps[tap] for taps in made]) if made else none
            for tap in spec.image_taps
        }

    def _features(
        self, rows: npt.NDArray[np.int64], what: str
    ) -> Iterator[dict[int, torch.Tensor]]:
        """Yield the features of rows, chunk by chunk, by tap; those of bad images left out."""
        spec = self._spec
        maker = ViewMaker(self._scan.paths, spec.view.augment, spec.seed)
        with tqdm(total=len(rows), desc=what, unit="image") as progress:
            for chunk in sample_chunks(self._scan, spec.seed, rows, spec.chunk_rows):
                made = maker(chunk)
                # A full chunk, as the builder always runs.
                views = np.zeros((spec.chunk_rows, *made.views.shape[1:]), np.uint8)
                views[: len(made.views)] = made.views
                good = [idx for idx in range(len(made.views)) if idx not in made.bad]
                taps = self._teacher.image_taps(torch.from_numpy(views))
                yield {tap: features[good] for tap, features in taps.items()}
                progress.update(len(made.views))


class _Moments:
    """Sums over rows of a tap's standardised tokens."""

    def __init__(self, num_tokens: int, width: int) -> None:
        self._count = 0
        self._sums = np.zeros((num_tokens, width))
        self._products = np.zeros((width, width))

    def add(self, features: torch.Tensor) -> None:
        """Add rows. Shape: (B, T, D)."""
        tokens = standardise(features)
        flat = tokens.flatten(0, 1)
        self._count += len(features)
        self._sums += tokens.sum(dim=0).cpu().numpy()
        self._products += (flat.T @ flat).cpu().numpy()

    def fit(self) -> KltBasis:
        """Return the basis of the rows that were added."""
        return fit_basis(self._count, self._sums, self._products)


def fit_rows(features: torch.Tensor) -> KltBasis:
    """Return the basis of some rows of a tap. Shape: (B, T, D)."""
    moments = _Moments(*features.shape[1:])
    moments.add(features)
    return moments.fit()


def sample_chunks(
    scan: Scan, seed: int, rows: npt.NDArray[np.int64], chunk_rows: int
) -> Iterator[ChunkRows]:
    """Yield rows of a scan as what their views are made of, in view 0."""
    for start in range(0, len(rows), chunk_rows):
        some = rows[start : start + chunk_rows]
        yield ChunkRows(
            view_idx=0,
            sources=scan.row_source[some].tolist(),
            lmdb_indexes=scan.row_lmdb_index[some].tolist(),
            hashes=scan.hashes(seed, some).tolist(),
        )
