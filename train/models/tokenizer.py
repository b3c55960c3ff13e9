"""Labels to token ids and back, in PARSeq's and CLIP-OCR's layout.

    id      0     1 ... C       C + 1   C + 2
    token   EOS   characters    BOS     PAD

A student embeds all C + 3 tokens but predicts only the first C + 1: nothing ever follows with BOS
or PAD, so a class index and a token id are the same number.

Shapes: B batch, L label positions (characters of the longest label, plus EOS), C characters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
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
        codes = _code_points(charset.characters)
        order = np.argsort(codes)
        self._codes, self._ids_of_codes = codes[order], order + 1

    def encode(self, labels: Sequence[str], num_positions: int | None = None) -> Tensor:
        """Write each label as BOS, characters, EOS, and pad. Shape: (B, L + 1).

        The first L columns are what the decoder reads, the last L what it should say.

        Args:
            labels: B labels.
            num_positions: L; None: characters of the longest label, and EOS.

        Raises:
            DataError: a label with a character outside the charset.
        """
        lengths = np.fromiter(map(len, labels), np.int64, len(labels))
        if num_positions is None:
            num_positions = int(lengths.max(initial=0)) + 1 if labels else 0
        rows = np.full((len(labels), num_positions + 1), self.pad_id)
        rows[:, 0] = self.bos_id
        rows[:, 1:][np.arange(num_positions) < lengths[:, None]] = self._ids(labels)
        rows[np.arange(len(labels)), lengths + 1] = self.eos_id
        return torch.from_numpy(rows)

    def decode(self, probabilities: Tensor) -> tuple[list[str], list[Tensor]]:
        """Take the likeliest class at each position and cut at the first EOS.

        Args:
            probabilities: Softmax of a student's logits. Shape: (B, L, C + 1).

        Returns:
            B labels, and for each the probabilities of its characters and of its EOS, on the CPU.
            Shape: (len(label) + 1,), or (L,) if no EOS came.
        """
        best_BL, ids_BL = (values.cpu() for values in probabilities.max(dim=-1))
        labels = self.decode_ids(ids_BL)
        ends = (len(label) + 1 for label in labels)
        return labels, [best_L[:end] for best_L, end in zip(best_BL, ends, strict=True)]

    def decode_ids(self, ids_BL: Tensor) -> list[str]:
        """Cut each row at its first EOS. Shape: (B, L) -> B labels."""
        labels = []
        for ids in ids_BL.tolist():
            end = ids.index(self.eos_id) if self.eos_id in ids else len(ids)
            labels.append("".join(self.charset.characters[i - 1] for i in ids[:end]))
        return labels

    def _ids(self, labels: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the ids of all characters of some labels. Shape: (characters,)."""
        codes = _code_points("".join(labels))
        places = np.searchsorted(self._codes, codes)
        is_known = self._codes.take(places, mode="clip") == codes
        if not is_known.all():
            unknown = chr(codes[is_known.argmin()])
            label = next(label for label in labels if unknown in label)
            raise DataError(
                f"label {label!r} holds {unknown!r}, which charset {self.charset.name!r} "
                "cannot write; pass labels through Charset.adapt first"
            )
        ids: npt.NDArray[np.int64] = self._ids_of_codes[places]
        return ids


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
