"""What the loader hands to a method: views, labels, and the teacher's features of them.

Shapes: B batch, H and W height and width of a view, L label positions, T teacher image tokens, D
teacher width, E joint width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize


class BatchPart(NamedTuple):
    """The size of one process's part of a batch."""

    num_rows: int
    num_positions: int
    """L of that process."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch on the training device, features decoded to floating point."""

    labels: list[str]
    """B training labels, already adapted to the run's charset."""
    token_ids: torch.Tensor
    """The labels as BOS, characters, EOS, padding, by the `LabelTokenizer` of the run's charset.
    Shape: (B, L + 1)."""
    views: torch.Tensor | None
    """uint8 RGB; None: the method reads no pixels. Shape: (B, H, W, 3)."""
    images: Mapping[str, torch.Tensor]
    """Image arrays by name. Shape: (B, T, D) each."""
    text: Mapping[str, torch.Tensor]
    """Text arrays by name. One with a row per position has SOT dropped: position j belongs to
    character j (with word tokens to BPE token j), then EOT, then padding; Shape: (B, L, D). One
    with a row per label, such as ``eot``: Shape: (B, E). Of prompts all positions of the sentence,
    SOT first."""
    pool: torch.Tensor | None = None
    """Tokens of natural images, another one for each row; None: the method reads none.
    Shape: (B, T, D)."""
    device: torch.device
    """Where all of it is."""
    parts: tuple[BatchPart, ...] = ()
    """Of every process, by rank, so that none has to ask another; empty if this one is alone."""

    @property
    def num_positions(self) -> int:
        """L: characters of the longest label, of this process or of all, and EOS."""
        return self.token_ids.shape[1] - 1

    def first(self, num_rows: int) -> Batch:
        """Return the batch of its first rows, of this process alone."""
        head = slice(num_rows)
        return replace(
            self,
            labels=self.labels[head],
            token_ids=self.token_ids[head],
            views=None if self.views is None else self.views[head],
            images={name: rows[head] for name, rows in self.images.items()},
            text={name: rows[head] for name, rows in self.text.items()},
            pool=None if self.pool is None else self.pool[head],
            parts=(),
        )

    def normalized_views(self) -> torch.Tensor:
        """Return the views as a recogniser reads them. Shape: (B, 3, H, W).

        Contiguous, because a convolution rounds differently where the same numbers lie in another
        order in memory. The views of a cache are so already.
        """
        assert self.views is not None, "a method that reads pixels says so in its needs"
        return normalize(self.views, STUDENT_MEAN, STUDENT_STD).contiguous()
