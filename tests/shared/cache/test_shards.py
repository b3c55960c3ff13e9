"""The shard files: plain Zarr reads them, and a wrong byte never comes through."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from clipocr.shared.cache.shards import (
    GROUP_METADATA,
    ArrayLayout,
    ArrayReader,
    ArrayWriter,
    write_array,
)
from clipocr.shared.cache.storage import LocalStorage
from clipocr.shared.cache.strings import decode_strings, encode_strings
from clipocr.shared.errors import CacheCorruptError, CacheMissingError


def layout(**changes: object) -> ArrayLayout:
    settings: dict[str, object] = {
        "name": "group/array",
        "shape": (70, 3),
        "dtype": "float16",
        "chunk_rows": 8,
        "shard_rows": 32,
    }
    return ArrayLayout(**(settings | changes))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "int32"])
def test_plain_zarr_reads_what_is_written(tmp_path: Path, compressed: bool, dtype: str) -> None:
    storage = LocalStorage(tmp_path)
    values = np.random.default_rng(0).integers(0, 99, (70, 3)).astype(dtype)
    write_array(storage, layout(compressed=compressed, dtype=dtype), values)
    storage.write("zarr.json", GROUP_METADATA)
    array = zarr.open_group(tmp_path, mode="r")["group/array"]
    np.testing.assert_array_equal(array[:], values)
    assert array.shards == (32, 3)
    assert array.chunks == (8, 3)


def test_bytes_of_a_shard(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    small = layout(shape=(3,), dtype="uint8", chunk_rows=2, shard_rows=6)
    write_array(storage, small, np.array([7, 8, 9], np.uint8))
    chunks = [bytes([7, 8]), bytes([9, 0])]  # The last chunk is padded with the fill value.
    body = b"".join(c + struct.pack("<I", google_crc32c.value(c)) for c in chunks)
    index = struct.pack("<6Q", 0, 6, 6, 6, 2**64 - 1, 2**64 - 1)
    expected = body + index + struct.pack("<I", google_crc32c.value(index))
    assert (tmp_path / "group/array/c/0").read_bytes() == expected


def test_appending_in_any_pieces_gives_the_same_files(tmp_path: Path) -> None:
    values = np.arange(210, dtype=np.float16).reshape(70, 3)
    records = []
    for pieces in ([70], [1] * 70, [7, 40, 23]):
        storage = LocalStorage(tmp_path / str(len(pieces)))
        writer = ArrayWriter(storage, layout())
        for part in np.split(values, np.cumsum(pieces)[:-1]):
            writer.append(part)
        records.append(writer.publish())
    assert records[0] == records[1] == records[2]
    assert sorted(records[0]) == [f"group/array/c/{shard}/0" for shard in range(3)]


def test_reader_returns_rows_across_chunks_and_shards(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    values = np.arange(210, dtype=np.float16).reshape(70, 3)
    reader = ArrayReader(storage, layout(), write_array(storage, layout(), values))
    np.testing.assert_array_equal(reader.rows(5, 41), values[5:41])
    np.testing.assert_array_equal(reader.all(), values)
    np.testing.assert_array_equal(reader.chunk(2, 0), values[64:70])  # Padding is cut off.
    assert reader.rows(9, 9).shape == (0, 3)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _swap(path: Path) -> None:
    shutil.copy(path.parents[1] / "1" / "0", path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("damage", [_flip, _truncate, _zero, _swap, Path.unlink])
def test_damage_is_never_read(
    tmp_path: Path, damage: Callable[[Path], None], compressed: bool
) -> None:
    storage = LocalStorage(tmp_path)
    values = np.random.default_rng(1).standard_normal((70, 3)).astype(np.float16)
    some = layout(compressed=compressed)
    files = write_array(storage, some, values)
    damage(tmp_path / "group/array/c/0/0")
    expected = CacheMissingError if damage is Path.unlink else CacheCorruptError
    with pytest.raises(expected, match="array/c/0/0"):
        ArrayReader(storage, some, files).all()


def test_nothing_appears_before_publish(tmp_path: Path) -> None:
    writer = ArrayWriter(LocalStorage(tmp_path), layout())
    writer.append(np.zeros((70, 3), np.float16))
    assert not (tmp_path / "group").exists()
    writer.discard()
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_strings_round_trip() -> None:
    strings = ["", "a", "née", "日本", "😀"]
    assert decode_strings(*encode_strings(strings).values()) == strings
    assert decode_strings(*encode_strings([]).values()) == []
