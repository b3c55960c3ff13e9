"""Rows gathered from mapped files: the right ones, only sound ones, and none of them in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipocr.shared.cache.row_table import RowTable
from clipocr.shared.cache.shards import ArrayLayout, ArrayReader, write_array
from clipocr.shared.cache.storage import LocalStorage
from clipocr.shared.errors import CacheCorruptError, CacheMissingError


def stored(folder: Path, values: np.ndarray, **changes: object) -> ArrayReader:
    settings = {"chunk_rows": 8, "shard_rows": 32, "compressed": False} | changes
    layout = ArrayLayout(
        name="group/array", shape=values.shape, dtype=values.dtype.name, **settings
    )
    storage = LocalStorage(folder)
    return ArrayReader(storage, layout, write_array(storage, layout, values))


@pytest.mark.parametrize("num_rows", [1, 8, 32, 33, 70])
@pytest.mark.parametrize("compressed", [False, True])
def test_rows_are_those_of_the_array(tmp_path: Path, num_rows: int, compressed: bool) -> None:
    rng = np.random.default_rng(num_rows)
    values = rng.standard_normal((num_rows, 3)).astype(np.float16)
    table = stored(tmp_path, values, compressed=compressed).row_table()
    assert (len(table), table.shape, table.nbytes) == (num_rows, (num_rows, 3), 6 * num_rows)
    where = rng.integers(0, num_rows, (4, 5)).astype(np.int32)
    np.testing.assert_array_equal(table[where], values[where])
    np.testing.assert_array_equal(table[:], values)
    np.testing.assert_array_equal(table[num_rows - 1], values[-1])
    assert table[where[:0]].shape == (0, 5, 3)
    # Into a part of something larger, as batches are put together.
    out = np.zeros((6, 5, 3), np.float16)
    table.take(where, out[1:5])
    np.testing.assert_array_equal(out[1:5], values[where])
    assert not out[0].any()
    assert not out[5].any()


def test_an_array_in_memory_is_a_table_too() -> None:
    values = np.arange(12, dtype=np.int32).reshape(4, 3)
    np.testing.assert_array_equal(RowTable.of(values)[np.array([3, 0])], values[[3, 0]])
    np.testing.assert_array_equal(RowTable.of(values.T)[:], values.T)
    assert RowTable.of(values[:0])[:].shape == (0, 3)


@pytest.mark.parametrize("at", [0, 47, 48, 51, 52 * 4 - 5, 52 * 4 + 3])
def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path, at: int) -> None:
    """In rows, in a chunk's checksum, or in the index."""
    reader = stored(tmp_path, np.ones((70, 3), np.float16))
    path = tmp_path / "group/array/c/1/0"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    if at in (48, 51):  # A checksum inside the file: what counts is the one in the record.
        np.testing.assert_array_equal(reader.row_table()[:], 1)
        return
    with pytest.raises(CacheCorruptError, match=r"array/c/1/0: (chunk \d|the chunk index) is not"):
        reader.row_table()


def test_truncated_empty_and_missing_files_are_refused(tmp_path: Path) -> None:
    reader = stored(tmp_path, np.ones((70, 3), np.float16))
    path = tmp_path / "group/array/c/1/0"
    data = path.read_bytes()
    for wrong in (data[:-1], data + b"x", b""):
        path.write_bytes(wrong)
        with pytest.raises(CacheCorruptError, match=r"array/c/1/0: its size of \d+ bytes is not"):
            reader.row_table()
    path.unlink()
    with pytest.raises(CacheMissingError, match=r"array/c/1/0 is missing. "):
        reader.row_table()


def test_a_table_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """So processes that read the same one share it, through the page cache."""
    values = np.random.default_rng(0).integers(0, 99, (1 << 17, 128)).astype(np.float16)
    reader = stored(tmp_path, values, chunk_rows=256, shard_rows=1 << 16)
    before = anonymous_bytes()
    table = reader.row_table()
    where = np.arange(0, len(values), 1000)
    np.testing.assert_array_equal(table[where], values[where])
    assert anonymous_bytes() - before < values.nbytes / 4


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])
