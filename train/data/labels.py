"""The labels that a run trains on, and the teacher's text features of them, in memory.

Shapes: U unique labels, M rows of an array with a row per position, L label positions, D text
width, E joint width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ...shared.cache.reader import FeatureCache
from ...shared.cache.shards import Array
from ...shared.cache.text_spec import TextSpec
from ...shared.charset import Charset


@dataclass(frozen=True, kw_only=True)
class TrainingLabels:
    """Unique labels under a run's charset."""

    charset_name: str
    of_label: npt.NDArray[np.int32]
    """The cache's label id -> label here, -1 where the charset leaves nothing. Shape: (labels,)."""
    strings: list[str]
    """The U labels."""
    by_position: Mapping[str, Array]
    """Arrays with a row per position, by name; `rows_of_positions` says which. Shape: (M, D)."""
    by_label: Mapping[str, Array]
    """Arrays with a row per label, by name. Shape: (U, E)."""
    rows_of_positions: npt.NDArray[np.int32] | None
    """Row of each label position: characters, EOT, padding; None without such arrays.
    Shape: (U, L)."""

    @classmethod
    def read(cls, cache: FeatureCache, spec: TextSpec, arrays: Sequence[str]) -> Self:
        """Read the labels of a text table, and some of its arrays."""
        table = cache.text_table(spec.name, arrays)
        by_row = {
            rows: {k: v for k, v in table.arrays.items() if spec.array(k).rows == rows}
            for rows in ("prefix", "string")
        }
        return cls(
            charset_name=spec.charset_name,
            of_label=table.of_label,
            strings=table.strings,
            by_position=by_row["prefix"],
            by_label=by_row["string"],
            rows_of_positions=table.nodes,
        )

    @classmethod
    def without_features(cls, cache: FeatureCache, charset: Charset) -> Self:
        """Return the labels of a cache, for a method that asks the teacher nothing about them."""
        adapted = [charset.adapt(label) for label in cache.labels()]
        strings = sorted({label for label in adapted if label})
        ids = {label: i for i, label in enumerate(strings)} | {"": -1}
        return cls(
            charset_name=charset.name,
            of_label=np.asarray([ids[label] for label in adapted], np.int32),
            strings=strings,
            by_position={},
            by_label={},
            rows_of_positions=None,
        )
