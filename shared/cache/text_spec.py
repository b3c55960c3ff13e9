"""Text tables: what the teacher says of every label, or of any other list of strings.

The text encoder is causal, so a feature depends on the tokens up to its position only: arrays with
a row per *prefix* hold each distinct prefix once, and ``nodes`` says which row a position reads.

Shapes: U strings, L positions of a string, M prefixes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from . import names
from .json_record import later_field
from .row_table import RowTable
from .shards import ArrayLayout
from .strings import flat_layout, strings_layouts

_CHUNK_ROWS = 256
_SHARD_ROWS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class TextArraySpec:
    """One array of features in a text table, float16."""

    name: str
    """``block3``: the residual stream after block 3; ``ln_final``: after the last block and its
    LayerNorm; ``eot``: the projected EOT embedding."""
    width: int
    """D."""
    rows: Literal["prefix", "string"]
    """What it has a row for."""


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """One text table."""

    name: str
    """E.g. ``char-36``."""
    tokenizer: str
    """How the teacher read the labels: ``char`` one character at a time, ``word`` whole, ``prompt``
    within a sentence."""
    template: str = later_field("")
    """The sentence, with ``{label}`` where the label stands; empty of labels by themselves."""
    context_length: int
    """Tokens of the longest string, SOT and pads that are read among them."""
    num_positions: int
    """L: how many positions of a string are read, pads among them."""
    charset_name: str
    characters: str
    max_label_length: int
    num_strings: int
    """U: unique labels left after the charset was applied."""
    num_string_bytes: int
    """Their UTF-8 bytes."""
    num_prefixes: int
    """M."""
    arrays: tuple[TextArraySpec, ...]

    @property
    def is_prompt(self) -> bool:
        """Whether positions are tokens of a sentence, and so the same number for every label."""
        return self.tokenizer == names.PROMPT

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays of features."""
        return tuple(array.name for array in self.arrays)

    def array(self, name: str) -> TextArraySpec:
        """Return an array of features; one that there is."""
        return next(array for array in self.arrays if array.name == name)

    def string_layouts(self) -> dict[str, ArrayLayout]:
        """Return the arrays of the strings."""
        return strings_layouts(names.text_group(self.name), self.num_strings, self.num_string_bytes)

    def layouts(self, num_labels: int) -> dict[str, ArrayLayout]:
        """Return all arrays: of the strings, ``of_label``, ``nodes``, and features by name."""

        group = names.text_group(self.name)

        def table(key: str, num_rows: int, width: int, dtype: str) -> ArrayLayout:
            return ArrayLayout(
                name=names.array_path(group, key),
                shape=(num_rows, width),
                dtype=dtype,
                chunk_rows=_CHUNK_ROWS,
                shard_rows=_SHARD_ROWS,
                compressed=dtype == "int32",
            )

        num_rows = {"prefix": self.num_prefixes, "string": self.num_strings}
        return {
            **self.string_layouts(),
            "of_label": flat_layout(names.array_path(group, "of_label"), num_labels, "int32"),
            "nodes": table("nodes", self.num_strings, self.num_positions, "int32"),
            **{a.name: table(a.name, num_rows[a.rows], a.width, "float16") for a in self.arrays},
        }


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A text table, its features left in their files where those can be mapped."""

    spec: TextSpec
    of_label: npt.NDArray[np.int32]
    """Label id -> string id, -1 where the charset leaves nothing. Shape: (labels,)."""
    strings: list[str]
    """The U training labels."""
    nodes: npt.NDArray[np.int32]
    """Prefix that each position of a string reads; of labels these are the characters, EOT, and
    the pads that the official loss includes. Shape: (U, L)."""
    arrays: Mapping[str, RowTable]
    """Features by name, float16. Shape: (M, D) per prefix, (U, D) per string."""
