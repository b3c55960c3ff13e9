"""The labels that a run trains on, and the teacher's text features of them.

Shapes: U unique labels, M rows of an array with a row per position, L label positions, D text
width, E joint width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from ...shared.cache.reader import FeatureCache
from ...shared.cache.row_table import RowTable
from ...shared.cache.text_spec import TextSpec
from ...shared.charset import Charset

_COPIED_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TrainingLabels:
    """Unique labels under a run's charset."""

    charset_name: str
    of_label: npt.NDArray[np.int32]
    """The cache's label id -> label here, -1 where the charset leaves nothing. Shape: (labels,)."""
    strings: list[str]
    """The U labels."""
    features: Mapping[str, RowTable]
    """Text arrays by name. Shape: (M, D) with a row per position, (U, E) with one per label."""
    with_positions: frozenset[str]
    """Which of them have a row per position; `rows_of_positions` says which row."""
    rows_of_positions: npt.NDArray[np.int32]
    """Row of each label position: characters, EOT, padding. Shape: (U, L)."""

    @classmethod
    def read(cls, cache: FeatureCache, spec: TextSpec, arrays: Sequence[str]) -> Self:
        """Read the labels of a text table, and open some of its arrays."""
        table = cache.text_table(spec.name, arrays)
        return cls(
            charset_name=spec.charset_name,
            of_label=table.of_label,
            strings=table.strings,
            features=table.arrays,
            with_positions=frozenset(k for k in arrays if spec.array(k).rows == "prefix"),
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
            features={},
            with_positions=frozenset(),
            rows_of_positions=np.empty((len(strings), 0), np.int32),
        )

    def features_on(self, device: torch.device) -> dict[str, torch.Tensor] | None:
        """Copy all features to a GPU; None if they are not small against its free memory."""
        if not 0 < sum(table.nbytes for table in self.features.values()) <= _room_on(device):
            return None
        copies = {}
        for name, table in self.features.items():
            of_table = torch.from_numpy(table[:0])
            copies[name] = of_table.new_empty(table.shape, device=device)
            # In parts, because the table may be larger than what is free beside it in memory.
            for start in range(0, len(table), _COPIED_ROWS):
                rows = torch.from_numpy(table[start : start + _COPIED_ROWS])
                copies[name][start : start + len(rows)] = rows
        return copies


def _room_on(device: torch.device) -> int:
    """Return how many bytes of features a device may hold: a CPU none, whose memory has them."""
    if device.type != "cuda":
        return 0
    return torch.cuda.mem_get_info(device)[0] // 8
