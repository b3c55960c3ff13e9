"""Files that hold the old or the new, also on disks that cannot sync a folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from clipocr.shared.atomic import replacing


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
