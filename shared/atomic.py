"""Writing a file so that its name is always a whole one, the old or the new."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write, which is synced and takes the place of `path` if the block succeeds.

    The name tells the process, for several may write the same file.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
