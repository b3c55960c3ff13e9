"""What a program writes can always be written, whatever the terminal's encoding and files' names.

A label may hold a character that the output's encoding has not: it is written as ``\\u6771``. A
file's name may be bytes that are no text: they are written as they are, so that what reads the
output finds the file.
"""

from __future__ import annotations

import codecs
import io
import sys

_NAME = "clipocr"


def install() -> None:
    """Write stdout and stderr in this way for the rest of the process; for a program."""
    codecs.register_error(_NAME, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_NAME)


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what stands for the characters that cannot be encoded, and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    parts = []
    for character in error.object[error.start : error.end]:
        code = ord(character)
        # What Python makes of a byte in a name that is not UTF-8.
        is_byte = 0xDC80 <= code <= 0xDCFF
        parts.append(
            bytes([code - 0xDC00]) if is_byte else character.encode("ascii", "backslashreplace")
        )
    return b"".join(parts), error.end
