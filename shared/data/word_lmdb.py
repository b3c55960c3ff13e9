"""Word images with labels in LMDBs, in the key layout that every STR toolkit reads.

Keys are ``num-samples``, ``image-%09d`` (encoded image bytes) and ``label-%09d`` (UTF-8), counted
from 1; see ``tools/create_lmdb_dataset.py`` of PARSeq.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Self

import lmdb

from ..errors import DataError, UsageError
from .folders import as_text, folders_below

_FIRST_MAP_BYTES = 1 << 26
_SAMPLES_PER_TRANSACTION = 1000
_NUM_DIGITS = 9
_MAX_SAMPLES = 10**_NUM_DIGITS - 1
_PARTIAL_SUFFIX = ".lmdb-partial"

# LMDB forbids opening one environment twice in a process, and using one across a fork.
_open_environments: weakref.WeakValueDictionary[tuple[int, Path], lmdb.Environment] = (
    weakref.WeakValueDictionary()
)


def image_key(sample_idx: int) -> bytes:
    """Return the key of an image."""
    return b"image-%09d" % sample_idx


def label_key(sample_idx: int) -> bytes:
    """Return the key of a label."""
    return b"label-%09d" % sample_idx


def find_lmdbs(root: Path) -> list[Path]:
    """Return every folder at or below `root` that holds a ``data.mdb``, in path order.

    MJSynth's train, val and test and SynthText are one root this way.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected one with LMDBs in it")
    found = folders_with({"data.mdb"}, root)
    if not found:
        raise DataError(
            f"no LMDB (a folder with data.mdb) at or below {root}; "
            f"make one with: clipocr data import IMAGES {root / 'words.lmdb'}"
        )
    return found


def folders_with(names: Set[str], root: Path) -> list[Path]:
    """Return every folder at or below `root` that holds a file of one of `names`, in path order.

    An LMDB that is being written is none yet.
    """
    return sorted(
        folder
        for folder, files in folders_below(root)
        if names & files and not folder.name.endswith(_PARTIAL_SUFFIX)
    )


def find_named_lmdbs(roots: Sequence[Path]) -> dict[str, Path]:
    """Return every LMDB at or below `roots` by name, as `find_named` does."""
    return find_named(roots, find_lmdbs)


def find_named(roots: Sequence[Path], find: Callable[[Path], Sequence[Path]]) -> dict[str, Path]:
    """Return what `find` finds below each root, by names that do not tell where roots lie."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in find(root):
            name = as_text(path.relative_to(root) if path != root else root.resolve().name)
            if name in found:
                raise DataError(
                    f"{found[name]} and {path} would both be named {name!r}; "
                    "pass one root above both"
                )
            found[name] = path
    return dict(sorted(found.items()))


class WordLmdb:
    """One LMDB of words, read-only.

    The environment is opened at first use, once per process, and again after a fork or in an
    unpickled copy, so an instance may travel to worker processes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._env: lmdb.Environment | None = None
        self._env_pid = 0

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_env": None, "_env_pid": 0}

    @property
    def env(self) -> lmdb.Environment:
        """The open environment of this process."""
        if self._env is None or self._env_pid != os.getpid():
            self._env, self._env_pid = self._open(), os.getpid()
        return self._env

    def opened(self) -> Self:
        """Open it, which finds damage that reading would meet later; return it."""
        _ = self.env
        return self

    def _open(self) -> lmdb.Environment:
        if not (self.path / "data.mdb").is_file():
            raise DataError(f"{self.path} is not an LMDB: it holds no data.mdb")
        key = (os.getpid(), self.path.resolve())
        env = _open_environments.get(key)
        if env is None:
            try:
                # No lock file: sources may be on a read-only file system, and nobody writes them.
                env = lmdb.open(
                    os.fsencode(self.path),
                    readonly=True,
                    lock=False,
                    readahead=False,
                    meminit=False,
                )
            except lmdb.Error as e:
                raise DataError(f"{self.path} cannot be opened as an LMDB: {e}") from e
            self._refuse_truncated(env)
            self._refuse_other_keys(env)
            _open_environments[key] = env
        return env

    def _refuse_truncated(self, env: lmdb.Environment) -> None:
        """Refuse a half-copied file; reading past its end would kill the process with SIGBUS."""
        num_pages = env.info()["last_pgno"] + 1
        file_bytes = (self.path / "data.mdb").stat().st_size
        num_missing = num_pages - file_bytes // env.stat()["psize"]
        # LMDB may leave the last few pages of a sound file unwritten, if they were freed again.
        if num_missing > 16 + num_pages // 100:
            raise DataError(
                f"{self.path}/data.mdb is truncated: {file_bytes} bytes, expected "
                f"{num_pages * env.stat()['psize']}; copy it again"
            )

    def _refuse_other_keys(self, env: lmdb.Environment) -> None:
        """Refuse keys that are numbered in another way; none of their samples would be found."""
        with env.begin() as txn:
            for wanted in (image_key(1), label_key(1)):
                prefix, cursor = wanted[:-_NUM_DIGITS], txn.cursor()
                key = cursor.key() if cursor.set_range(prefix) else b""
                number = key.removeprefix(prefix)
                if key.startswith(prefix) and not (number.isdigit() and len(number) == _NUM_DIGITS):
                    raise DataError(
                        f"{self.path} has keys such as {key[:40].decode(errors='replace')!r}; "
                        f"expected {_NUM_DIGITS} digits, such as {wanted.decode()!r}. Write it "
                        "anew, from its pictures by: clipocr data import"
                    )

    def __len__(self) -> int:
        """Return what ``num-samples`` says."""
        value = self._get(b"num-samples")
        if value is None:
            raise DataError(
                f"{self.path} is an LMDB without the key 'num-samples'; expected the STR layout "
                "(num-samples, image-%09d, label-%09d)"
            )
        if not value.strip().isdigit() or int(value) > _MAX_SAMPLES:
            raise DataError(
                f"{self.path}: num-samples is {value[:30]!r}, expected a decimal number "
                f"up to {_MAX_SAMPLES}"
            )
        if int(value) > self.num_keys:
            raise DataError(
                f"{self.path}: num-samples is {int(value):,}, but the LMDB has only "
                f"{self.num_keys:,} keys; it is another set's count, or the LMDB was only partly "
                "written"
            )
        return int(value)

    @property
    def num_keys(self) -> int:
        """Number of keys of any kind."""
        return int(self.env.stat()["entries"])

    def image(self, sample_idx: int) -> bytes | None:
        """Return the encoded image of sample `sample_idx` (from 1), or None without that key."""
        return self._get(image_key(sample_idx))

    def label(self, sample_idx: int) -> str | None:
        """Return the raw label of sample `sample_idx` (from 1), or None if absent or not UTF-8."""
        value = self._get(label_key(sample_idx))
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return None

    def labels(self) -> Iterator[tuple[int, str | None]]:
        """Yield (sample index from 1, raw label) of every sample in order."""
        for sample_idx in range(1, len(self) + 1):
            yield sample_idx, self.label(sample_idx)

    @property
    def num_bytes(self) -> int:
        """Size of its file."""
        return (self.path / "data.mdb").stat().st_size

    def _get(self, key: bytes) -> bytes | None:
        try:
            with self.env.begin() as txn:
                value = txn.get(key)
        except lmdb.Error as e:
            raise DataError(f"{self.path}: reading {key.decode()} failed: {e}") from e
        return None if value is None else bytes(value)

    def __iter__(self) -> Iterator[tuple[int, bytes | None, str | None]]:
        """Yield (sample index from 1, encoded image, raw label) of every sample in order."""
        for sample_idx in range(1, len(self) + 1):
            yield sample_idx, self.image(sample_idx), self.label(sample_idx)


class WordLmdbWriter:
    """Writes one LMDB of words; it appears under its name only when it is complete.

    Usage::

        with WordLmdbWriter(Path("words.lmdb")) as writer:
            writer.add(jpeg_bytes, "label")
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists; pass --overwrite to replace it")
        if path.exists() and not _is_only_lmdb(path):
            raise UsageError(
                f"{path} exists and is not an LMDB (a folder of data.mdb and lock.mdb, nothing "
                "else); it is not replaced, choose another name"
            )
        self.path = path
        self.num_samples = 0
        # A link stays a link: what it points to is replaced.
        self._final = path.resolve()
        self._partial = self._final.with_name(f".{self._final.name}{_PARTIAL_SUFFIX}")
        self._pending: list[tuple[bytes, bytes]] = []

    def __enter__(self) -> WordLmdbWriter:
        self._final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()
        self._env = lmdb.open(os.fsencode(self._partial), map_size=_FIRST_MAP_BYTES)
        return self

    def add(self, encoded_image: bytes, label: str) -> None:
        """Append one sample; image bytes go in as they are."""
        self.num_samples += 1
        self._pending.append((image_key(self.num_samples), encoded_image))
        self._pending.append((label_key(self.num_samples), label.encode()))
        if len(self._pending) >= 2 * _SAMPLES_PER_TRANSACTION:
            self._flush()

    def add_all(self, samples: Iterable[tuple[bytes, str]]) -> None:
        """Append every (encoded image, label) of `samples`."""
        for encoded_image, label in samples:
            self.add(encoded_image, label)

    def _flush(self) -> None:
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    for key, value in self._pending:
                        txn.put(key, value)
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except lmdb.Error as e:
                raise DataError(f"{self.path}: writing failed: {e}; is the disk full?") from e
            else:
                self._pending.clear()
                return

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                self._pending.append((b"num-samples", b"%d" % self.num_samples))
                self._flush()
                self._env.sync(True)
                self._env.close()
                (self._partial / "lock.mdb").unlink(missing_ok=True)
                if self._final.is_dir():
                    shutil.rmtree(self._final)
                os.replace(self._partial, self._final)
        finally:
            self._env.close()  # A second time does nothing.
            shutil.rmtree(self._partial, ignore_errors=True)


def _is_only_lmdb(path: Path) -> bool:
    return path.is_dir() and {p.name for p in path.iterdir()} <= {"data.mdb", "lock.mdb"}
