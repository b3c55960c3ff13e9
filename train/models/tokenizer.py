"""Labels to token ids and back, in PARSeq's and CLIP-OCR's layout.

    id      0     1 ... C       C + 1   C + 2
    token   EOS   characters    BOS     PAD

A student embeds all C + 3 tokens but predicts only the first C + 1: nothing ever follows with BOS
or PAD, so a class index and a token id are the same number.

Shapes: B batch, L label positions (characters of the longest label, plus EOS), C characters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...shared.charset import Charset
from ...shared.errors import DataError, UsageError


class LabelTokenizer:
    """Turns labels into what a student is fed, and its predictions into labels."""

    eos_id = 0

    def __init__(self, charset: Charset, max_label_length: int) -> None:
        """Lay out the tokens of a charset.

        Args:
            charset: Characters that can be written.
            max_label_length: Longest label that a recogniser can write, in characters.
        """
        if max_label_length < 1:
            raise UsageError(f"max_label_length is {max_label_length}, expected 1 or more")
        self.charset = charset
        self.max_label_length = max_label_length
        self.num_classes = len(charset.characters) + 1
        self.bos_id = self.num_classes
        self.pad_id = self.num_classes + 1
        self.num_tokens = self.num_classes + 2
        self._character_ids = {c: i for i, c in enumerate(charset.characters, start=1)}

    def encode(self, labels: Sequence[str], num_positions: int | None = None) -> Tensor:
        """Write each label as BOS, characters, EOS, and pad. Shape: (B, L + 1).

        The first L columns are what the decoder reads, the last L what it should say.

        Args:
            labels: B labels.
            num_positions: L; None: characters of the longest label, and EOS.

        Raises:
            DataError: a label with a character outside the charset.
        """
        rows = [[self.bos_id, *self._ids(label), self.eos_id] for label in labels]
        width = max(map(len, rows), default=1) if num_positions is None else num_positions + 1
        padded = [row + [self.pad_id] * (width - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(rows), width)

    def decode(self, probabilities: Tensor) -> tuple[list[str], list[Tensor]]:
        """Take the likeliest class at each position and cut at the first EOS.

        Args:
            probabilities: Softmax of a student's logits. Shape: (B, L, C + 1).

        Returns:
            B labels, and for each the probabilities of its characters and of its EOS, on the CPU.
            Shape: (len(label) + 1,), or (L,) if no EOS came.
        """
        best_BL, ids_BL = (values.cpu() for values in probabilities.max(dim=-1))
        labels, character_probabilities = [], []
        for best_L, ids in zip(best_BL, ids_BL.tolist(), strict=True):
            end = ids.index(self.eos_id) if self.eos_id in ids else len(ids)
            labels.append("".join(self.charset.characters[i - 1] for i in ids[:end]))
            character_probabilities.append(best_L[: end + 1])
        return labels, character_probabilities

    def _ids(self, label: str) -> list[int]:
        try:
            return [self._character_ids[c] for c in label]
        except KeyError as e:
            raise DataError(
                f"label {label!r} holds {e.args[0]!r}, which charset {self.charset.name!r} "
                "cannot write; pass labels through Charset.adapt first"
            ) from None
