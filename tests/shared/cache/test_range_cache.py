"""Copies stay within their bound, whoever writes them, and nothing of them is taken on trust."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipocr.shared.cache.range_cache import RangeCache
from clipocr.shared.errors import UsageError


def used(folder: Path) -> int:
    """Return the bytes of all copies, those being written included."""
    sizes = []
    for path in folder.iterdir():
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return sum(sizes)


def test_what_was_put_can_be_got(tmp_path: Path) -> None:
    copies = RangeCache(tmp_path / "new" / "folder", 1000)
    assert copies.get("a") is None
    copies.put("a", b"abc")
    copies.put("a", b"abcd")
    assert copies.get("a") == RangeCache(tmp_path / "new" / "folder", 1000).get("a") == b"abcd"
    copies.drop("a")
    copies.drop("a")
    assert copies.get("a") is None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    copies = RangeCache(tmp_path, 1000)
    for i, key in enumerate("abcde"):
        copies.put(key, bytes(180))
        os.utime(tmp_path / f"{key}.range", (i, i))
    assert copies.get("a") is not None  # Used again, so b is now the oldest.
    copies.put("f", bytes(180))
    assert [key for key in "abcdef" if copies.get(key) is None] == ["b"]
    copies.put("too large", bytes(1001))
    assert copies.get("too large") is None
    assert copies.get("f") is not None


def test_a_smaller_bound_takes_effect_at_once(tmp_path: Path) -> None:
    copies = RangeCache(tmp_path, 1000)
    for key in "abcde":
        copies.put(key, bytes(180))
    RangeCache(tmp_path, 400)
    assert used(tmp_path) == 360


def test_the_bound_holds_at_every_moment_for_threads_and_processes(tmp_path: Path) -> None:
    bound = 200_000
    copies = RangeCache(tmp_path, bound)
    script = (
        "import sys; from pathlib import Path\n"
        "from clipocr.shared.cache.range_cache import RangeCache\n"
        f"copies = RangeCache(Path(sys.argv[1]), {bound})\n"
        "for i in range(400): copies.put(f'{sys.argv[2]}{i % 350}', bytes(100 + i % 900))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    others = [subprocess.Popen([*command, name]) for name in "xy"]
    with ThreadPoolExecutor(4) as executor:
        for i in range(400):
            executor.submit(copies.put, f"t{i % 290}", bytes(100 + i % 900))
        seen = [used(tmp_path)]
        while any(process.poll() is None for process in others):
            seen.append(used(tmp_path))
    assert [process.returncode for process in others] == [0, 0]
    assert max(seen) <= bound
    assert bound / 2 < used(tmp_path) <= bound
    assert not list(tmp_path.glob("*.part"))


def test_what_a_killed_writer_left_counts_and_goes_in_its_turn(tmp_path: Path) -> None:
    leftover = tmp_path / "k.123.part"
    leftover.write_bytes(bytes(700))
    os.utime(leftover, (1, 1))
    (tmp_path / "a note of yours").write_bytes(bytes(5000))
    copies = RangeCache(tmp_path, 1000)
    copies.put("a", bytes(500))
    assert not leftover.exists()
    assert copies.get("a") is not None
    assert (tmp_path / "a note of yours").exists()


def test_a_full_disk_costs_the_copy_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = RangeCache(tmp_path, 1000)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", fail)
        copies.put("a", b"abc")
    assert copies.get("a") is None
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="pass another folder as --cache-dir, or --cache-bytes 0"):
        RangeCache(tmp_path / "file" / "copies", 1000)
