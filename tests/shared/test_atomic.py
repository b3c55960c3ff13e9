"""Files that hold the old or the new, also on disks that cannot sync a folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from checkpoints import save_untrained

from clipocr.shared.atomic import new_folder, replacing
from clipocr.shared.cache.storage import LocalStorage
from clipocr.train.deploy.description import load_described
from clipocr.train.deploy.safetensors_file import write_safetensors


def refuse_fsync(monkeypatch: pytest.MonkeyPatch, number: int, *, of_files: bool) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if of_files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_sync_a_folder_is_written_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_fsync(monkeypatch, number, of_files=False)
    with replacing(tmp_path / "file") as partial:
        partial.write_bytes(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "of_files"), [(errno.EIO, False), (errno.EIO, True), (errno.EINVAL, True)]
)
def test_what_is_not_on_the_disk_is_an_error(
    number: int, of_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_fsync(monkeypatch, number, of_files=of_files)
    with (
        pytest.raises(OSError, match=os.strerror(number)),
        replacing(tmp_path / "file") as partial,
    ):
        partial.write_bytes(b"new")


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_are_for_whom_the_user_says(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        checkpoint = save_untrained(tmp_path / "run" / "last.pt")
        with replacing(tmp_path / "run" / "model.safetensors") as partial:
            write_safetensors(partial, *load_described(checkpoint))
        with replacing(tmp_path / "run" / "text") as partial:
            partial.write_text("new")
        LocalStorage(tmp_path / "run" / "cache").write("rows/zarr.json", b"{}")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*")}
    assert len(modes) == 7
    assert all(m == (0o777 if p.is_dir() else 0o666) & ~umask for p, m in modes.items()), modes


def test_a_folder_of_a_failure_goes_if_nothing_is_in_it(tmp_path: Path) -> None:
    def fail_in(folder: Path, *, leaves_file: bool) -> None:
        with new_folder(folder):
            (folder / "within").mkdir()
            if leaves_file:
                (folder / "within" / "file").touch()
            raise ValueError("no")

    (tmp_path / "there").mkdir()
    for folder in ("there", "there/new", "new/deep"):
        with pytest.raises(ValueError, match="no"):
            fail_in(tmp_path / folder, leaves_file=False)
    assert {path.name for path in tmp_path.rglob("*")} == {"there", "within"}
    with pytest.raises(ValueError, match="no"):
        fail_in(tmp_path / "new" / "deep", leaves_file=True)
    assert (tmp_path / "new" / "deep" / "within" / "file").exists()
