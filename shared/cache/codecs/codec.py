"""How an image array is stored, as a spec and a command line name it. Needs no NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...errors import UsageError

CODEC_KINDS = ("fp16", "int8", "int4", "klt")
NUM_OUTLIERS = 4
"""Values of a token that ``int8`` and ``int4`` keep apart."""
HEAD_BYTES = 2 + 4 * NUM_OUTLIERS
"""What they store besides the codes."""
MAX_BITS = 8
"""Of a component of ``klt``."""
_KLT_BYTES = 192


@dataclass(frozen=True, kw_only=True)
class Codec:
    """``fp16``, ``int8``, ``int4`` or ``klt:P``; see `codecs` for what they keep."""

    kind: str
    record_bytes: int = 0
    """P of ``klt:P``, the bytes of a token; 0 of the other kinds, where the width decides it."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the codec of that name; ``klt`` alone keeps 192 bytes."""
        kind, colon, record_bytes = text.partition(":")
        if kind == "klt" and (not colon or record_bytes.isdecimal()):
            return cls(kind=kind, record_bytes=int(record_bytes or _KLT_BYTES))
        if text not in CODEC_KINDS:
            fixed = ", ".join(kind for kind in CODEC_KINDS if kind != "klt")
            raise UsageError(
                f"feature codec {text!r} is unknown; expected one of {fixed}, klt:BYTES"
            )
        return cls(kind=kind)

    def __str__(self) -> str:
        return f"{self.kind}:{self.record_bytes}" if self.kind == "klt" else self.kind

    @property
    def has_table(self) -> bool:
        """Whether it works by a table that is fit to the array's own features."""
        return self.kind == "klt"

    def token_bytes(self, width: int) -> int:
        """Return the bytes of a token.

        Raises:
            UsageError: tokens of that width cannot be stored.
        """
        if self.kind == "int4" and (width % 2 or width <= NUM_OUTLIERS):
            raise UsageError(f"codec int4 packs pairs of values; a token of {width} has none")
        most = width * MAX_BITS // 8
        if self.kind == "klt" and not 1 <= self.record_bytes <= most:
            raise UsageError(
                f"codec {self} does not fit tokens of {width}; pass klt:1 to klt:{most}"
            )
        return {
            "fp16": 2 * width,
            "int8": width + HEAD_BYTES,
            "int4": width // 2 + HEAD_BYTES,
            "klt": self.record_bytes,
        }[self.kind]


CODEC_EXAMPLES = tuple(map(Codec.parse, CODEC_KINDS))
"""One codec of each kind."""


def codec_per_array(codecs: Sequence[Codec], arrays: Sequence[str]) -> dict[str, Codec]:
    """Return the codec of each image array.

    Args:
        codecs: One for all arrays, or one for each.
        arrays: Their names.
    """
    if len(codecs) == 1:
        return dict.fromkeys(arrays, codecs[0])
    if len(codecs) != len(arrays):
        raise UsageError(
            f"codec {','.join(map(str, codecs))!r} is of {len(codecs)} image arrays, there are "
            f"{len(arrays)}; pass one codec for all, or one for each"
        )
    return dict(zip(arrays, codecs, strict=True))


def join_codecs(codecs: Sequence[Codec]) -> str:
    """Return the codecs of all arrays as ``--codec`` takes them, as short as can be."""
    return str(codecs[0]) if len(set(codecs)) == 1 else ",".join(map(str, codecs))
