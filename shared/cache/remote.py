"""A cache at an address: ``s3://bucket/words.cache``, or any other that fsspec knows.

Credentials and endpoints come from where the library of the protocol looks for them
(``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ``HF_TOKEN``, fsspec's own ``FSSPEC_S3_ANON``, ...). Nothing
is ever written to an address. What fails is tried again with growing pauses.

The tries are counted here, because fsspec has none for ``http://``, and those of s3fs and botocore
multiply; tenacity would save fewer than ten lines of `RemoteStorage._try`. obstore retries, but
knows no ``hf://`` and lists ``http://`` by WebDAV only, so it would be a second way beside fsspec.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..distribution import install_command
from ..errors import CacheCorruptError, CacheMissingError, CacheUnavailableError, UsageError
from .memory import Bytes
from .range_cache import RangeCache
from .storage import LocalStorage, RangeCheck, ReadStorage, missing_file

_Result = TypeVar("_Result")

_MAX_PAUSE_S = 8.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long to try a request."""

    tries: int = 5
    """How often a request is sent in all."""
    timeout_s: float = 30.0
    """How long one request may take; libraries without asyncio (``hf://``) keep their own limit."""
    first_pause_s: float = 0.5
    """Between the first two tries; each further pause is twice as long, up to 8 s."""

    def pause_s(self, num_failures: int) -> float:
        """Return how long to wait after the n-th failure in a row, by chance up to half more."""
        # By chance, so that readers that failed together do not come back together.
        spread = random.SystemRandom().uniform(1.0, 1.5)
        return spread * min(self.first_pause_s * 2.0 ** (num_failures - 1), _MAX_PAUSE_S)


DEFAULT_PATIENCE = Patience()


def open_storage(
    place: str | Path, *, cache_dir: Path | None = None, max_cache_bytes: int = 0
) -> ReadStorage:
    """Return the storage of a cache in a folder, or at an fsspec address.

    Of what is read from an address copies of at most `max_cache_bytes` are kept, 0 for none, in
    `cache_dir`; None: the user's folder for what can be fetched again.
    """
    if isinstance(place, Path) or "://" not in place:
        return LocalStorage(Path(place))
    if not max_cache_bytes:
        return RemoteStorage(place)
    if cache_dir is None:
        try:
            cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clipocr")
        except RuntimeError as e:
            raise UsageError(
                f"user {os.getuid()} has no home to keep what is read in; pass a folder as "
                "--cache-dir, or --cache-bytes 0 to keep nothing"
            ) from e
    return RemoteStorage(place, copies=RangeCache(cache_dir / "ranges", max_cache_bytes))


class RemoteStorage(ReadStorage):
    """A `ReadStorage` at an fsspec address.

    Besides what a `ReadStorage` raises, every method raises `CacheUnavailableError` if the server
    does not answer or refuses to.
    """

    def __init__(
        self, address: str, *, copies: RangeCache | None = None, patience: Patience | None = None
    ) -> None:
        """Prepare to read; nothing is sent yet."""
        self._address = address.rstrip("/")
        self._copies = copies
        self._patience = patience or DEFAULT_PATIENCE
        self._fs, self._root = _open_file_system(self._address, self._patience)
        # Or its buffered files would fetch five megabytes beyond each range.
        is_hub = self._fs.protocol == "hf"
        self._read_options: dict[str, Any] = {"cache_type": "none"} if is_hub else {}
        self._is_http = "http" in self._fs.protocol

    def __str__(self) -> str:
        return self._address

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if there is none."""
        info = self._found(name, lambda: self._call("info", name))
        return None if info is None else int(info["size"])

    def names(self, folder: str) -> list[str]:
        """Return the names of all files below `folder`, sorted."""
        # Or fsspec takes a folder that a server of HTTP fails to list for an empty one.
        options = {"on_error": "raise"} if self._is_http else {}
        paths = self._found(folder, lambda: self._call("find", folder, **options)) or ()
        return sorted(path.removeprefix(f"{self._root}/") for path in paths)

    def read(self, name: str) -> bytes:
        """Return a whole file; no copy is kept, since records may change."""
        stored: bytes = self._try(name, lambda: self._call("cat_file", name))
        return stored

    def read_into(
        self, block: Bytes, name: str, start: int, check: RangeCheck | None = None
    ) -> None:
        """Fill `block` from a sound copy if there is one, else from the network."""
        stop = start + len(block)

        def fill(stored: bytes) -> str:
            """Fill `block` and return what is wrong with `stored`, or nothing."""
            if len(stored) != len(block):
                return f"gave {len(stored)} bytes for bytes {start} to {stop}"
            block.data[:] = stored
            is_sound = check is None or check.is_sound(block)
            return "" if is_sound else f"bytes {start} to {stop} are not what was committed"

        def fetch() -> bytes:
            options = {"start": start, "end": stop, **self._read_options}
            stored: bytes = self._call("cat_file", name, **options)
            if problem := fill(stored):
                raise _WrongBytesError(problem)
            return stored

        if check is None or self._copies is None:
            self._try(name, fetch)
            return
        # Content decides the key, so a cache that was moved, or built again, finds its copies.
        identity = f"{check.file_sha256} {start} {len(block)}"
        key = hashlib.sha256(identity.encode()).hexdigest()
        copy = self._copies.get(key)
        if copy is not None:
            if not fill(copy):
                return
            self._copies.drop(key)
        self._copies.put(key, self._try(name, fetch))

    def _call(self, method: str, name: str, **options: int | str) -> Any:
        """Call a method of the file system within the time limit."""
        from fsspec.asyn import sync

        path = f"{self._root}/{name}"
        if not self._fs.async_impl:
            return getattr(self._fs, method)(path, **options)
        # The public methods of an asynchronous file system would wait without limit.
        timeout_s = self._patience.timeout_s
        call = getattr(self._fs, f"_{method}")
        return sync(self._fs.loop, call, path, timeout=timeout_s, **options)

    def _found(self, name: str, request: Callable[[], _Result]) -> _Result | None:
        """Return what `_try` returns, or None if there is no such file."""
        try:
            return self._try(name, request)
        except CacheMissingError:
            return None

    def _try(self, name: str, request: Callable[[], _Result]) -> _Result:
        """Return what `request` does, sending it again while it fails for a passing reason."""
        patience, started = self._patience, time.monotonic()
        for num_failures in range(1, patience.tries + 1):
            try:
                return request()
            except Exception as e:
                # Every file system raises errors of its own, and most of what they mean passes.
                # That of HTTP calls every file missing whose size it fails to get.
                failure = e.__cause__ if self._is_http and e.__cause__ else e
            response = getattr(failure, "response", None)
            status = getattr(failure, "status", 0) or getattr(response, "status_code", 0)
            if "Credential" in type(failure).__name__:  # Of botocore, which only S3 needs.
                raise CacheUnavailableError(
                    f"{self} cannot be read: {_reason(failure)}. Set the credentials by "
                    "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public "
                    "bucket set FSSPEC_S3_ANON=true"
                ) from failure
            if "bucket does not exist" in str(failure):
                raise CacheUnavailableError(
                    f"{self} cannot be read: there is no bucket "
                    f"{self._root.partition('/')[0]!r}. Check its name, and AWS_ENDPOINT_URL if "
                    "it is not at Amazon's"
                ) from failure
            if status == 404 or isinstance(failure, FileNotFoundError | NotADirectoryError):
                raise missing_file(f"{self}/{name}")
            if isinstance(failure, PermissionError) or status in (401, 403):
                raise CacheUnavailableError(
                    f"{self}/{name} may not be read ({_reason(failure)}); check the credentials, "
                    "and that they allow reading and listing"
                ) from failure
            if num_failures < patience.tries:
                time.sleep(patience.pause_s(num_failures))
        tried = f"tried {patience.tries} times in {time.monotonic() - started:.0f} s"
        if isinstance(failure, _WrongBytesError):
            raise CacheCorruptError(
                f"{self}/{name} {failure}, {tried} (a damaged, truncated or exchanged file, or a "
                "server without range requests). Put the file there again from a sound cache"
            )
        is_late = isinstance(failure, TimeoutError)
        reason = f"no answer within {patience.timeout_s:g} s" if is_late else _reason(failure)
        raise CacheUnavailableError(
            f"{self}/{name} cannot be read: {reason}, {tried}. Check the address, the network and "
            "the server, and run the command again; a run goes on by: clipocr train --resume RUN"
        ) from failure


class _WrongBytesError(Exception):
    """An answer arrived, but not the bytes that were wanted."""


def _open_file_system(address: str, patience: Patience) -> tuple[Any, str]:
    """Return the file system of an address, and the address in its own terms."""
    # Imported here: a cache in a folder needs none of it.
    from fsspec.core import split_protocol, url_to_fs

    protocol = split_protocol(address)[0]
    # Listings are not remembered: the cache may be growing. Instances are not shared: the settings
    # below are for us alone.
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in ("s3", "s3a"):
        # One try a request: botocore's five by s3fs's five by ours would take hours to give up.
        options["config_kwargs"] = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": patience.timeout_s,
            "read_timeout": patience.timeout_s,
        }
    try:
        file_system, root = url_to_fs(address, **options)
    except ImportError as e:
        is_extra = protocol in ("s3", "s3a", "http", "https")
        remedy = f"; install it with: {install_command('s3')}" if is_extra else ""
        raise UsageError(f"{address} needs a package that is missing: {e}{remedy}") from e
    except ValueError as e:
        raise UsageError(
            f"{address} cannot be read: {e}; expected a folder, or an address such as "
            "s3://bucket/words.cache"
        ) from e
    if protocol in ("s3", "s3a"):
        file_system.retries = 1
    return file_system, root.rstrip("/")


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
