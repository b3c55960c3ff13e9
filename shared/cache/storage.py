"""The bytes of a cache: named files below one folder, published durably, read by range.

A file is written under a temporary name, synced, read back and compared, renamed to its final
name, and its folder synced. So a name that exists is complete, at whatever moment a writer was
killed; what it leaves is in ``.tmp`` only. (Zarr's own local store renames, but never syncs.)

Reading is a `ReadStorage`: a folder, or what `remote` finds at an address such as
``s3://bucket/words.cache``. Only a folder is ever written to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from crc32c import crc32c

from ..atomic import make_folder, rename, sync
from ..errors import MEND, CacheCorruptError, CacheMissingError
from .memory import Bytes
from .names import TMP_FOLDER, record_file, text_group, text_parts

_ABSENT = (FileNotFoundError, NotADirectoryError)
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a committed file must be, to the byte."""

    num_bytes: int
    sha256: str
    chunk_crc32c: str = ""
    """For a Zarr shard: CRC-32C of each inner chunk's payload, 8 hex digits each, in order. For the
    teacher's weights: of the header, then of each block (see `tensor_file`).

    Readers compare these, not the sums inside the file: a sound shard under another shard's name
    carries its own correct sums, and only the commit record tells the two apart.
    """


@dataclass(frozen=True, kw_only=True)
class RangeCheck:
    """How to tell that a range of a file is what was committed."""

    file_sha256: str
    """Of the whole file; a copy of the range is kept under it."""
    is_sound: Callable[[Bytes], bool]


class ReadStorage(ABC):
    """The reading side of a cache's files; safe to share between threads.

    Its text is the place, as messages name it. `name` is always a relative POSIX path, as it
    stands in commit records.
    """

    def exists(self, name: str) -> bool:
        """Return whether a file of that name was published."""
        return self.size(name) is not None

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if there is none."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Return the names of all files below `folder`, sorted."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a whole file; if there is none, raise `CacheMissingError`."""

    @abstractmethod
    def read_into(
        self, block: Bytes, name: str, start: int, check: RangeCheck | None = None
    ) -> None:
        """Fill `block` with the bytes of a file from offset `start` on.

        By `check` a storage that reads over a network reads again what arrived damaged, and keeps
        copies of what arrived sound. A folder does not use it, so the caller checks `block`, too.

        Raises:
            CacheMissingError: there is no such file.
            CacheCorruptError: the file ends before the block does.
        """


class PendingFile:
    """A file being written under a temporary name; `publish` makes it appear."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self._final = root / name
        self._partial = root / TMP_FOLDER / _temporary_name()
        make_folder(self._partial.parent)
        self._file = self._partial.open("xb")
        self._sha256 = hashlib.sha256()
        self._crc32c = 0
        self.num_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._file.write(data)
        self._sha256.update(data)
        self._crc32c = crc32c(data, self._crc32c)
        self.num_bytes += len(data)

    @property
    def sha256(self) -> str:
        """Digest of what was written so far, in hex."""
        return self._sha256.hexdigest()

    def publish(self, chunk_crc32c: str = "") -> FileRecord:
        """Sync, read back, compare, rename, sync the folder; return the record."""
        self._file.close()
        sync(self._partial)
        # CRC-32C: ten times as fast as SHA-256, and enough against errors that nobody made.
        if _size_and_crc32c(self._partial) != (self.num_bytes, self._crc32c):
            raise CacheCorruptError(
                f"{self._final} read back differently from what was written; the disk or its "
                "memory is failing. Run the same command again on another disk"
            )
        rename(self._partial, self._final)
        return FileRecord(num_bytes=self.num_bytes, sha256=self.sha256, chunk_crc32c=chunk_crc32c)

    def discard(self) -> None:
        """Drop what was written; harmless after `publish`."""
        # On a full disk closing fails too, for what is still in the buffer.
        with contextlib.suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)


class LocalStorage(ReadStorage):
    """A cache folder on a file system: a `ReadStorage` that can be written to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if there is none."""
        try:
            return (self.root / name).stat().st_size
        except _ABSENT:
            return None

    def names(self, folder: str) -> list[str]:
        """Return the names of all files below `folder`, sorted."""
        base = self.root / folder
        return sorted(p.relative_to(self.root).as_posix() for p in base.rglob("*") if p.is_file())

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        try:
            return (self.root / name).read_bytes()
        except _ABSENT:
            raise missing_file(self.root / name) from None

    def read_into(
        self,
        block: Bytes,
        name: str,
        start: int,
        check: RangeCheck | None = None,  # noqa: ARG002  (a disk gives the same bytes again)
    ) -> None:
        """Fill `block` with the bytes of a file from offset `start` on."""
        try:
            with FileIO(self.root / name) as file:
                file.seek(start)
                num_bytes = file.readinto(block.data)
        except _ABSENT:
            raise missing_file(self.root / name) from None
        if num_bytes < len(block):
            raise CacheCorruptError(
                f"{self.root / name} has fewer than {start + len(block):,} bytes (a truncated or "
                f"exchanged file). {MEND}"
            )

    def create(self, name: str) -> PendingFile:
        """Begin a file that appears under `name` when it is published."""
        return PendingFile(self.root, name)

    def write(self, name: str, data: bytes) -> FileRecord:
        """Publish a small file in one go."""
        pending = self.create(name)
        try:
            pending.write(data)
            return pending.publish()
        finally:
            pending.discard()

    def ensure(self, name: str, data: bytes) -> FileRecord:
        """Publish a small file unless it is there already, byte for byte."""
        if self.exists(name) and self.read(name) == data:
            return FileRecord(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        return self.write(name, data)

    def keep_first(self, name: str, data: bytes) -> None:
        """Publish a small file unless there is one of that name, whatever it holds.

        The file has to be alone in its folder, because it is the folder that is renamed: a rename
        never replaces a folder that holds something, and a file system need not have hard links.
        """
        folder = (self.root / name).parent
        with scratch_folder(self) as scratch:
            scratch.write(f"folder/{Path(name).name}", data)
            make_folder(folder.parent)
            try:
                os.replace(scratch.root / "folder", folder)
            except OSError as e:
                if e.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        sync(folder.parent)

    def remove(self, name: str) -> None:
        """Remove a file for good, if there is one."""
        path = self.root / name
        if path.is_file():
            path.unlink()
            sync(path.parent)

    def sweep(self) -> None:
        """Remove what killed writers of this machine left behind; living writers keep theirs.

        Parts of a text table are kept until its record is there.
        """
        for parts in (self.root / text_parts("*")).parent.glob("*"):
            if self.exists(record_file(text_group(parts.name))):
                shutil.rmtree(parts, ignore_errors=True)
        for leftover in (self.root / TMP_FOLDER).glob(f"{socket.gethostname()}@*@*"):
            if _is_alive(int(leftover.name.split("@")[1])):
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(storage: LocalStorage) -> Iterator[LocalStorage]:
    """Lend a folder on the same disk, removed when the block is left or by the next sweep."""
    scratch = storage.root / TMP_FOLDER / _temporary_name()
    try:
        yield LocalStorage(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _temporary_name() -> str:
    """Return a name that no other has, and that says which process of which machine wrote it."""
    return f"{socket.gethostname()}@{os.getpid()}@{uuid.uuid4().hex}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as e:
        return not isinstance(e, ProcessLookupError)
    return True


def missing_file(place: object) -> CacheMissingError:
    """Return the error that a file is not there."""
    return CacheMissingError(f"{place} is missing. {MEND}")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_and_crc32c(path: Path) -> tuple[int, int]:
    num_bytes, checksum = 0, 0
    block = np.empty(_BLOCK_BYTES, np.uint8)
    with FileIO(path) as file:
        while num_read := file.readinto(block.data):
            num_bytes += num_read
            checksum = crc32c(block[:num_read].data, checksum)
    return num_bytes, checksum
