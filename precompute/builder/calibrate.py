"""What codecs are fit to and judged by: features of a sample of the cache's own rows.

The sample is the first 2,304 rows of the cache in view 0, which is a fair one because rows were
permuted. Codecs are judged by the first ninth of them, and tables are fit to the others, so that
what is measured holds for rows that nothing was fit to. All builders of a cache have to go on with
the same tables, though devices differ in the last bits: see `publish_table`.

Shapes: B rows, T image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from ...shared.cache.codecs.klt import KltBasis, fit_basis
from ...shared.cache.codecs.quantize import standardise
from ...shared.cache.shards import Array
from ...shared.cache.spec import CacheSpec
from ...shared.progress import progress_bar
from ..teacher.clip import Teacher
from .scan import Scan
from .views import ChunkRows, ViewMaker

SAMPLE_ROWS = 2304
_JUDGED_SHARE = 9


class CodecSample:
    """Runs the teacher over the sample when it is first asked for something, and only then."""

    def __init__(self, spec: CacheSpec, scan: Scan, teacher: Teacher) -> None:
        self._spec, self._scan, self.teacher = spec, scan, teacher

    def table(self, array: str, record_bytes: int) -> Array:
        """Return the table that keeps the tokens of an image array in so many bytes."""
        return self.bases[array].table(record_bytes)

    @cached_property
    def bases(self) -> dict[str, KltBasis]:
        """The basis of each image array, fit to all of the sample but its first ninth."""
        moments = {image.name: _Moments(*image.row_shape) for image in self._spec.images}
        for arrays in self._features(self._rows[1], "rows to fit tables to"):
            for array, features in arrays.items():
                moments[array].add(features)
        return {array: of_array.fit() for array, of_array in moments.items()}

    @cached_property
    def judged(self) -> dict[str, torch.Tensor]:
        """The features to judge codecs by. Shape: (B, T, D) each; B may be 0."""
        made = list(self._features(self._rows[0], "rows to judge codecs by"))
        none = {image.name: torch.empty(0, *image.row_shape) for image in self._spec.images}
        return {
            array: torch.cat([arrays[array] for arrays in made] or [empty])
            for array, empty in none.items()
        }

    @cached_property
    def _rows(self) -> list[npt.NDArray[np.int64]]:
        """Rows to judge codecs by, and rows to fit tables to."""
        rows = self._scan.order(self._spec.seed)[:SAMPLE_ROWS]
        return np.split(rows, [len(rows) // _JUDGED_SHARE])

    def _features(
        self, rows: npt.NDArray[np.int64], what: str
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the features of rows, chunk by chunk, by array; those of bad images left out."""
        spec = self._spec
        maker = ViewMaker(self._scan.pictures, spec.view, spec.seed)
        with progress_bar(total=len(rows), desc=what, unit="image") as progress:
            for chunk in sample_chunks(self._scan, rows, spec.chunk_rows):
                made = maker(chunk)
                good = [idx for idx in range(len(made.views)) if idx not in made.bad]
                arrays = self.teacher.chunk_features(made.views, spec.chunk_rows)
                yield {array: features[good] for array, features in arrays.items()}
                progress.update(len(made.views))


class _Moments:
    """Sums over rows of an image array's standardised tokens."""

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
    """Return the basis of some rows of an image array. Shape: (B, T, D)."""
    moments = _Moments(*features.shape[1:])
    moments.add(features)
    return moments.fit()


def sample_chunks(scan: Scan, rows: npt.NDArray[np.int64], chunk_rows: int) -> Iterator[ChunkRows]:
    """Yield rows of a scan as what their views are made of, in view 0."""
    for start in range(0, len(rows), chunk_rows):
        some = rows[start : start + chunk_rows]
        yield ChunkRows(0, scan.rows["source"][some], scan.rows["lmdb_index"][some])
