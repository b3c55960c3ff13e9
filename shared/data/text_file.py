"""Text files that people bring: labels, predictions."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError


def read_text(path: Path) -> str:
    """Return what a file says, in UTF-8 with or without a mark at its beginning.

    Raises:
        DataError: it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 (byte {e.start}); convert it first") from e


def lines_of(text: str) -> list[str]:
    """Return the lines; `str.splitlines` also splits at U+2028, which a label may hold."""
    return text.split("\n")
