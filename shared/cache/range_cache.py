"""Copies of what was read over a network, in a folder of bounded size.

Any number of threads and processes may share a folder. What cannot be kept is not kept, and what
cannot be read counts as absent. Copies are not synced to disk, so whoever reads one must check it,
and `drop` it if it is not sound.

Not by a library: fsspec's caching file systems have no bound, and diskcache needs SQLite's locks
to work on the network disk that a home folder may be.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from ..errors import UsageError

_SUFFIXES = (".range", ".part")
_KEPT_SHARE = 0.9
_UNCOUNTED_SHARE = 0.01
"""Of the bound: what stays after the folder was counted, and what a process may add before it
counts again. So the bound holds for up to ten processes that do not know of one another."""


class RangeCache:
    """A bounded folder of copies; the least recently used go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open or make the folder, and evict what is beyond its bound."""
        self._folder, self._max_bytes = folder, max_bytes
        self._uncounted = 0
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._evict(0)
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
        partial = self._folder / f"{key}.{os.getpid()}.{threading.get_ident()}.part"
        # On a full disk the copy is not kept, and the run goes on.
        with contextlib.suppress(OSError):
            with self._lock:
                self._uncounted += len(data)
                if self._uncounted > _UNCOUNTED_SHARE * self._max_bytes:
                    self._evict(len(data))
                    self._uncounted = 0
            try:
                partial.write_bytes(data)
                partial.replace(self._path(key))
            finally:
                partial.unlink(missing_ok=True)

    def drop(self, key: str) -> None:
        """Remove a copy that is not what it should be."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.range"

    def _evict(self, room: int) -> None:
        """Remove the least recently used until there is room for that many bytes."""
        found = []
        for path in self._folder.iterdir():
            if path.suffix in _SUFFIXES:
                with contextlib.suppress(FileNotFoundError):  # Another process removed it.
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, stat.st_size, path))
        beyond = sum(size for _, size, _ in found) + room - _KEPT_SHARE * self._max_bytes
        for _, size, path in sorted(found):
            if beyond <= 0:
                break
            path.unlink(missing_ok=True)
            beyond -= size
