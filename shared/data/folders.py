"""Folders and files below a folder; one that cannot be listed is an error."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NoReturn

from ..errors import DataError
from .images import IMAGE_SUFFIXES


def folders_below(root: Path) -> Iterator[tuple[Path, frozenset[str]]]:
    """Yield every folder at or below `root` with the names of its files, in path order.

    Links are followed. A link back up, or a second way to the same folder, is left out, because it
    would count its words twice.

    Raises:
        DataError: a folder cannot be listed, or a link leads nowhere: whole sets of words would
            be missing, and nobody would know. A picture may be such a link; it is missed by name.
    """
    seen = set()
    for folder, subfolders, files in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        for name in files:
            path = os.path.join(folder, name)
            # An editor's lock is a hidden link to nothing.
            may_miss = os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES or name.startswith(".")
            if os.path.islink(path) and not os.path.exists(path) and not may_miss:
                raise DataError(
                    f"{path} is a link to {os.readlink(path)}, which is not there; mount it, or "
                    "remove the link"
                )
        yield Path(folder), frozenset(files)


def as_text(name: str | os.PathLike[str]) -> str:
    """Return a file's name as a text that can be stored: bytes that are not UTF-8 as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def is_text(path: Path) -> bool:
    """Whether a path, made absolute, has only names that are UTF-8."""
    return as_text(path.absolute()) == str(path.absolute())


def files_below(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files of `folders_below` that end in one of `suffixes`, in path order.

    Suffixes are in lower case and with their dot; the files' case does not matter.
    """
    return sorted(
        folder / name
        for folder, files in folders_below(root)
        for name in files
        if os.path.splitext(name)[1].lower() in suffixes
    )


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"{error.filename} cannot be listed: {error.strerror}; let it be read, or pass the folders "
        "beside it instead of one above"
    ) from error
