"""What every storage of a cache does, whatever it is over.

A subclass lends the fixture `storage`, over a place that holds `FILES`; it is filled without the
storage, which so cannot vouch for itself.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from loopback import LoopbackHandler, LoopbackServer

from clipocr.shared.cache.remote import Patience
from clipocr.shared.cache.storage import RangeCheck, ReadStorage
from clipocr.shared.errors import CacheCorruptError, CacheMissingError, CacheUnavailableError

HASTY = Patience(tries=3, timeout_s=0.4, first_pause_s=0.01)
CALM = Patience(tries=3, timeout_s=20, first_pause_s=0.01)
"""For sound servers, which are slow on a busy machine: no request may be sent twice."""
SHARD = "image/view0/block3/c/0/0/0"
FILES = {
    "manifest.json": b"{}\n",
    SHARD: np.random.default_rng(0).bytes(70_000),
    "image/view0/block3/c/10/0/0": b"0123456789",
    "image/view0/block3/zarr.json": b"\xff\x00",
    # Not below image/, though its name begins so.
    "images/a": b"a",
}


def write_files(folder: Path) -> Path:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read(storage: ReadStorage, name: str, start: int, stop: int) -> bytes:
    block = np.full(stop - start, 7, np.uint8)
    storage.read_into(block, name, start)
    return block.tobytes()


class FolderServer(LoopbackServer):
    """Plain HTTP: the files of a folder, and an index page of each folder below it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(_FolderHandler)
        self.folder = folder


class _FolderHandler(LoopbackHandler):
    server: FolderServer

    def do_GET(self) -> None:
        path = self.server.folder / self.path.strip("/")
        if path.is_file():
            self.answer_range(path.read_bytes())
        elif path.is_dir():
            names = [f"{p.name}/" if p.is_dir() else p.name for p in sorted(path.iterdir())]
            page = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
            self.answer(200, page.encode(), {"Content-Type": "text/html"})
        else:
            self.answer(404, b"")

    do_HEAD = do_GET


class StorageContract:
    def test_names_are_those_below_a_folder(self, storage: ReadStorage) -> None:
        for folder in ("", "image", "image/view0/block3/c", "images", "none"):
            expected = sorted(n for n in FILES if n.startswith(f"{folder}/") or not folder)
            assert storage.names(folder) == expected

    def test_files_have_their_sizes_and_bytes(self, storage: ReadStorage) -> None:
        for name, data in FILES.items():
            assert storage.exists(name)
            assert storage.size(name) == len(data)
            assert storage.read(name) == data

    def test_ranges(self, storage: ReadStorage) -> None:
        data = FILES[SHARD]
        end = len(data)
        for start, stop in ((0, 1), (0, end), (3, 43), (end - 1, end), (65_530, end)):
            assert read(storage, SHARD, start, stop) == data[start:stop]

    def test_a_range_beyond_the_end_is_an_error(self, storage: ReadStorage) -> None:
        end = len(FILES[SHARD])
        for start in (0, end - 5, end, end + 5):
            with pytest.raises((CacheCorruptError, CacheUnavailableError), match=SHARD):
                read(storage, SHARD, start, max(end, start) + 1)

    def test_a_check_lets_sound_bytes_through(self, storage: ReadStorage) -> None:
        block = np.zeros(40, np.uint8)
        seen = []
        check = RangeCheck(
            file_sha256="any", is_sound=lambda part: seen.append(part.tobytes()) is None
        )
        storage.read_into(block, SHARD, 5, check)
        assert block.tobytes() == FILES[SHARD][5:45]
        assert set(seen) <= {block.tobytes()}

    def test_what_is_missing_is_named(self, storage: ReadStorage) -> None:
        assert not storage.exists("none")
        assert storage.size("image/none") is None
        for name in ("none", "image/view0/block3/c/2/0/0"):
            for call in (lambda n: storage.read(n), lambda n: read(storage, n, 0, 1)):
                with pytest.raises(CacheMissingError, match=f"{storage}/{name} is missing"):
                    call(name)

    def test_threads_share_it(self, storage: ReadStorage) -> None:
        def part(start: int) -> bool:
            return read(storage, SHARD, start, start + 999) == FILES[SHARD][start : start + 999]

        with ThreadPoolExecutor(8) as executor:
            assert all(executor.map(part, range(0, 60_000, 1_500)))


class AddressContract(StorageContract):
    """What every storage at an address does besides; the fixture `dead` is one without a server."""

    def test_a_dead_server_is_neither_empty_nor_missing_a_file(self, dead: ReadStorage) -> None:
        for call in (
            lambda: dead.exists("manifest.json"),
            lambda: dead.size("manifest.json"),
            lambda: dead.names("image"),
            lambda: dead.read("manifest.json"),
            lambda: read(dead, SHARD, 0, 9),
        ):
            with pytest.raises(CacheUnavailableError, match=rf"{dead}/.*tried 3 times"):
                call()
