"""Publication: a name that exists is whole, and the dead leave nothing that matters."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from storage_contract import StorageContract, write_files

from clipocr.shared.cache.storage import LocalStorage, hash_file, scratch_folder
from clipocr.shared.errors import CacheCorruptError


class TestFolder(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> LocalStorage:
        return LocalStorage(write_files(tmp_path))


def test_what_is_written_is_what_its_record_says(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    record = storage.write("a/b/c.bin", b"0123456789")
    assert (tmp_path / "a/b/c.bin").read_bytes() == b"0123456789"
    assert record.num_bytes == 10
    assert record.sha256 == hash_file(tmp_path / "a/b/c.bin")
    assert record.sha256 == hashlib.sha256(b"0123456789").hexdigest()


def test_what_reads_back_differently_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    pending = storage.create("file")
    pending.write(b"payload")
    real_fsync = os.fsync

    def fsync_on_a_bad_disk(descriptor: int) -> None:
        real_fsync(descriptor)
        (partial,) = (tmp_path / ".tmp").iterdir()
        partial.write_bytes(b"pAyload")

    monkeypatch.setattr(os, "fsync", fsync_on_a_bad_disk)
    with pytest.raises(CacheCorruptError, match="read back differently"):
        pending.publish()
    assert not storage.exists("file")


def test_sweep_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    (tmp_path / ".tmp").mkdir()
    host = socket.gethostname()
    abandoned = tmp_path / ".tmp" / f"{host}@{int(dead.stdout)}@x"
    elsewhere = tmp_path / ".tmp" / f"not-{host}@1@x"
    abandoned.touch()
    elsewhere.touch()
    abandoned_folder = abandoned.with_name(f"{host}@{int(dead.stdout)}@y")
    (abandoned_folder / "rows").mkdir(parents=True)
    mine = storage.create("file")
    with scratch_folder(storage) as scratch:
        scratch.write("rows/a", b"made")
        storage.sweep()
        assert scratch.read("rows/a") == b"made"
    assert not abandoned.exists()
    assert not abandoned_folder.exists()
    assert not scratch.root.exists()
    assert elsewhere.exists()
    mine.write(b"still mine")
    mine.publish()
    assert storage.read("file") == b"still mine"


def test_the_first_is_kept_also_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    storage = LocalStorage(tmp_path)
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda n: storage.keep_first("tables/a/c/0", b"%d" % n), range(8)))
    first = storage.read("tables/a/c/0")
    storage.keep_first("tables/a/c/0", b"late")
    assert storage.read("tables/a/c/0") == first
    assert storage.names("tables") == ["tables/a/c/0"]
    assert not list((tmp_path / ".tmp").iterdir())
    storage.remove("tables/a/c/0")
    storage.keep_first("tables/a/c/0", b"again")
    assert storage.read("tables/a/c/0") == b"again"


def test_what_hinders_the_first_is_told(tmp_path: Path) -> None:
    (tmp_path / "tables").write_bytes(b"a file, where a folder has to be")
    with pytest.raises(OSError, match="tables"):
        LocalStorage(tmp_path).keep_first("tables/c/0", b"data")
    assert not list((tmp_path / ".tmp").iterdir())
