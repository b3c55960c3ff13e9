"""The labels that a run trains on, and the teacher's text features of them.

Shapes: U unique labels, M rows of an array with a row per position, L label positions, D text
width, E joint width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Row of each label position: characters, EOT, padding; of prompts of each token of the
    sentence. Shape: (U, L)."""
    reads_all_positions: bool = False
    """Whether all of them are read of every label, and not as many as a batch's longest needs."""
    _on_device: dict[torch.device, dict[str, torch.Tensor] | None] = field(default_factory=dict)
    """What `features_on` has returned, because the loaders of a run share it."""

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
            reads_all_positions=spec.is_prompt,
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

    def held_out(self, share: float) -> npt.NDArray[np.bool_]:
        """Return which labels are left out of training, about that share of them. Shape: (U,).

        A label's own hash decides, so that it is left out of every cache and every run.
        """
        if not share:
            return np.zeros(len(self.strings), np.bool_)
        digests = (hashlib.sha256(label.encode()).digest() for label in self.strings)
        numbers = np.array([int.from_bytes(digest[:4], "little") for digest in digests], np.uint64)
        return numbers < share * 2**32

    def features_on(self, device: torch.device) -> dict[str, torch.Tensor] | None:
        """Return all features on a GPU; None if they are not small against its free memory."""
        if device not in self._on_device:
            self._on_device[device] = self._copied_to(device)
        return self._on_device[device]

    def _copied_to(self, device: torch.device) -> dict[str, torch.Tensor] | None:
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
