"""Tensors in a file: to the bit, as any reader of safetensors has them, and checked in part."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import safetensors
import torch
from safetensors.torch import load_file

from clipocr.shared.cache import tensor_file
from clipocr.shared.cache.memory import Bytes
from clipocr.shared.cache.remote import RemoteStorage
from clipocr.shared.cache.storage import FileRecord, LocalStorage, RangeCheck, ReadStorage
from clipocr.shared.cache.tensor_file import TensorFile, write_tensors
from clipocr.shared.errors import CacheCorruptError, CacheMismatchError

FILE = "teacher/weights.safetensors"
THIRD = 1 / 3
"""Not a number of float16."""
TENSORS = {
    "halves": torch.tensor([0.5, -0.0, 65504, 2**-24, float("inf")]),
    "wide": torch.full((3, 20), THIRD),
    "one wide among halves": torch.tensor([0.5, 2**-25]),
    "doubles": torch.tensor([[THIRD], [0.5]], dtype=torch.float64),
    "double halves": torch.tensor([-1.5], dtype=torch.float64),
    "half": torch.tensor([THIRD], dtype=torch.float16),
    "brain": torch.tensor([THIRD, 1e30], dtype=torch.bfloat16),
    "scalar": torch.tensor(4.6052),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "columns": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
    "nothing": torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32),
}
STORED = {"halves": "F16", "wide": "F32", "one wide among halves": "F32", "doubles": "F64",
          "double halves": "F16", "half": "F16", "brain": "BF16", "scalar": "F32", "count": "I64",
          "mask": "BOOL", "empty": "F16", "columns": "F16", "nothing": "F32"}  # fmt: skip


def bits(tensor: torch.Tensor) -> tuple[object, ...]:
    data = tensor.contiguous().flatten().view(torch.uint8).tolist()
    return tensor.dtype, tuple(tensor.shape), data


def require_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert {n: bits(t) for n, t in found.items()} == {n: bits(t) for n, t in expected.items()}


class LoggedStorage(LocalStorage):
    """Notes which bytes are read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ranges: list[tuple[int, int]] = []

    def read_into(
        self, block: Bytes, name: str, start: int, check: RangeCheck | None = None
    ) -> None:
        self.ranges.append((start, start + len(block)))
        super().read_into(block, name, start, check)


@pytest.fixture
def storage(tmp_path: Path) -> LoggedStorage:
    return LoggedStorage(tmp_path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_BLOCK_BYTES", 40)


def written(storage: LocalStorage) -> tuple[FileRecord, int]:
    return write_tensors(storage, FILE, TENSORS)


def test_every_tensor_comes_back_to_the_bit(storage: LoggedStorage) -> None:
    require_same(TensorFile(storage, FILE, *written(storage)).read(), TENSORS)


@pytest.mark.usefixtures("small_blocks")
def test_so_it_does_through_many_blocks(storage: LoggedStorage) -> None:
    record, header_bytes = written(storage)
    require_same(TensorFile(storage, FILE, record, header_bytes).read(), TENSORS)
    num_blocks = -(-(record.num_bytes - header_bytes) // 40)
    assert len(record.chunk_crc32c) == 8 * (1 + num_blocks) > 8 * 8
    assert len(storage.ranges) == 1 + num_blocks


def test_the_library_reads_the_file(storage: LoggedStorage) -> None:
    written(storage)
    path = storage.root / FILE
    found = load_file(path)
    with safetensors.safe_open(path, "pt") as opened:
        stored = {name: opened.get_slice(name).get_dtype() for name in found}
        restored = opened.metadata()
    assert stored == STORED
    assert restored == {"halves": "F32", "empty": "F32", "columns": "F32", "double halves": "F64"}
    require_same({n: found[n].to(t.dtype) for n, t in TENSORS.items()}, TENSORS)


def test_the_bytes_are_those_of_the_format(storage: LoggedStorage) -> None:
    tensors = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([2**-25])}
    record, header_bytes = write_tensors(storage, FILE, tensors)
    header = (
        b'{"__metadata__":{"b":"F32"},"a":{"data_offsets":[0,4],"dtype":"F32","shape":[1]},'
        b'"b":{"data_offsets":[4,8],"dtype":"F16","shape":[2]}}  '
    )
    assert len(header) == 136
    expected = b"\x88" + bytes(7) + header + b"\0\0\0\x33" + b"\0\x3c\0\xc0"
    assert (storage.root / FILE).read_bytes() == expected
    assert (record.num_bytes, header_bytes) == (152, 144)


def test_their_order_decides_nothing(storage: LoggedStorage, tmp_path: Path) -> None:
    shuffled = dict(reversed(TENSORS.items()))
    other = write_tensors(LocalStorage(tmp_path / "other"), FILE, shuffled)
    assert other == written(storage)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", TENSORS)
def test_of_one_tensor_only_its_blocks_are_read(storage: LoggedStorage, name: str) -> None:
    record, header_bytes = written(storage)
    file = TensorFile(storage, FILE, record, header_bytes)
    require_same(file.read([name]), {name: TENSORS[name]})
    (_, *blocks), num_bytes = sorted(storage.ranges), TENSORS[name].nbytes
    assert all((start - header_bytes) % 40 == 0 for start, _ in blocks)
    assert len(blocks) <= -(-num_bytes // 40) + 1
    assert file.read([]) == {}


@pytest.mark.usefixtures("small_blocks")
def test_every_flipped_bit_is_found_where_it_is_read(storage: LoggedStorage) -> None:
    record, header_bytes = written(storage)
    file = TensorFile(storage, FILE, record, header_bytes)
    path = storage.root / FILE
    sound = path.read_bytes()
    for at in range(0, len(sound), 7):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :])
        with pytest.raises(CacheCorruptError, match=rf"{FILE}: bytes .* not what was committed"):
            file.read()
    # The last byte is of another block than those of the widest tensor, which stand first.
    require_same(file.read(["doubles"]), {"doubles": TENSORS["doubles"]})
    path.write_bytes(sound[:-1])
    with pytest.raises(CacheCorruptError, match="truncated"):
        file.read()


def test_a_tensor_that_is_not_there_is_named(storage: LoggedStorage) -> None:
    file = TensorFile(storage, FILE, *written(storage))
    with pytest.raises(CacheMismatchError, match="has no tensor 'waist', expected one of its 13"):
        file.read(["wide", "waist"])


@pytest.mark.usefixtures("small_blocks")
def test_an_address_gives_what_the_folder_gives(storage: LoggedStorage) -> None:
    record, header_bytes = written(storage)
    fsspec.filesystem("memory").put(str(storage.root / FILE), f"/tensors/{FILE}")
    remote: ReadStorage = RemoteStorage("memory://tensors")
    require_same(TensorFile(remote, FILE, record, header_bytes).read(), TENSORS)
