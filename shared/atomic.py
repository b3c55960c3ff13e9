"""Writing a file so that its name always holds a whole one, the old or the new.

The bytes are written under another name on the same disk and synced, then renamed, and the folder
is synced: after a crash or a power cut at any moment the name holds all of the old file or all of
the new one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write, which takes the place of `path` if the block succeeds.

    The name contains the process id, because several processes may write the same file.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        # safetensors puts a temporary file of its own there, which the user alone may read.
        if partial.stat().st_mode != mode:
            partial.chmod(mode)
        sync(partial)
        rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def rename(partial: Path, path: Path) -> None:
    """Give a synced file its final name for good, in a folder that is made if need be."""
    make_folder(path.parent)
    os.replace(partial, path)
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, for good: each is synced in its parent."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it; if the block fails, those made go, but never a file."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        within = sorted(folder.rglob("*"), reverse=True)
        if all(path.is_dir() for path in within):
            for path in [*within, *made] if made else []:
                with suppress(OSError):  # Another process may be writing by now.
                    path.rmdir()
        raise


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        # CIFS and some FUSE file systems cannot sync a folder; they order names by themselves.
        if e.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
