"""Copies of what was read over a network, in a folder of bounded size.

    FOLDER/
      total        bytes in use, never less than the truth; its lock guards every change
      <key>.range  one copy

Any number of threads and processes may share a folder. What cannot be kept is not kept, and what
cannot be read counts as absent. Copies are not synced to disk, so whoever reads one must check it,
and `drop` it if it is not sound.

Not by a library: fsspec's caching file systems have no bound, and diskcache went 18 % beyond its
own for a moment, and needs SQLite's locks to work on the network disk that a home folder may be.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import UsageError

_SUFFIXES = (".range", ".part")
_KEPT_SHARE = 0.9
"""Of the bound, after an eviction: one scan of the folder then serves many puts."""


class RangeCache:
    """A bounded folder of copies; the least recently used go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open or make the folder, and evict what is beyond its bound."""
        self._folder, self._max_bytes = folder, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked() as file:
                _store(file, self._evict(max_bytes))
        except OSError as e:
            raise UsageError(
                f"{folder} cannot keep copies of what is read ({e.strerror}); pass another folder "
                "as --cache-dir, or --cache-bytes 0 to keep none"
            ) from e

    def get(self, key: str) -> bytes | None:
        """Return a copy, unchecked, or None; it becomes the most recently used."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep a copy, evicting others until there is room."""
        if len(data) > self._max_bytes:
            return
        partial = self._folder / f"{key}.part"
        # On a full disk the copy is not kept, and the run goes on.
        with contextlib.suppress(OSError), self._locked() as file:
            total = _load(file)
            if total is None or total + len(data) > self._max_bytes:
                room = min(self._max_bytes - len(data), int(_KEPT_SHARE * self._max_bytes))
                total = self._evict(room)
            # Before the copy: a process killed between the two leaves the total too high, not low.
            _store(file, total + len(data))
            try:
                partial.write_bytes(data)
                partial.replace(self._path(key))
            finally:
                partial.unlink(missing_ok=True)

    def drop(self, key: str) -> None:
        """Remove a copy that is not what it should be."""
        with contextlib.suppress(OSError), self._locked():
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.range"

    def _evict(self, max_bytes: int) -> int:
        """Remove the least recently used until at most `max_bytes` are left; return how many."""
        with os.scandir(self._folder) as entries:
            found = [
                (entry.stat().st_mtime_ns, entry.stat().st_size, entry.path)
                for entry in entries
                if entry.name.endswith(_SUFFIXES)
            ]
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= max_bytes:
                break
            os.unlink(path)
            total -= size
        return total

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Hold the folder's lock; yield the file of its total."""
        # Not at the top: there is none on Windows, where an address is read without copies.
        import fcntl

        descriptor = os.open(self._folder / "total", os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            # Held until the file is closed; each thread opens its own, so it excludes threads too.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _load(file: BinaryIO) -> int | None:
    file.seek(0)
    text = file.read()
    return int(text) if text.isdigit() else None


def _store(file: BinaryIO, total: int) -> None:
    file.seek(0)
    file.write(b"%020d" % total)
    file.flush()
