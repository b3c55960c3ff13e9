"""A file of named tensors, safetensors by its format, of which a part can be read and checked.

    8 bytes    size of the rest of the header, little-endian
    header     JSON: type, shape and place of each tensor; spaces fill it up to a multiple of 8
    blocks     the tensors, one after another, in blocks of 4 MiB

The file's record holds a CRC-32C of the header and of each block, so a tensor is checked without
reading the others. A tensor whose numbers float16 holds exactly is stored in it; which type it had
stands in ``__metadata__``, the part of the header that safetensors leaves to its users. The format
is written here, so that no version of a library decides a byte.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from crc32c import crc32c

from ..ahead import map_ahead
from ..errors import MEND, CacheCorruptError, CacheMismatchError
from .json_record import canonical_json
from .memory import Bytes
from .storage import FileRecord, LocalStorage, RangeCheck, ReadStorage

_BLOCK_BYTES = 1 << 22
_SIZE_BYTES = 8
_READ_THREADS = 4
_METADATA = "__metadata__"
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in the format."""
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def write_tensors(
    storage: LocalStorage, file: str, tensors: Mapping[str, torch.Tensor]
) -> tuple[FileRecord, int]:
    """Publish tensors as a file, whose bytes depend on nothing but their names and values.

    Returns:
        The record of the file, and the size of its header, with the eight bytes before it.
    """
    stored = {name: _narrowest(tensor.detach().cpu()) for name, tensor in tensors.items()}
    # The widest first, so that each lies at a multiple of its width for whoever maps the file.
    order = sorted(stored, key=lambda name: (-stored[name].itemsize, name))
    header: dict[str, Any] = {
        _METADATA: {
            name: _NAMES[tensor.dtype]
            for name, tensor in tensors.items()
            if stored[name].dtype != tensor.dtype
        }
    }
    data = np.empty(sum(tensor.nbytes for tensor in stored.values()), np.uint8)
    start = 0
    for name in order:
        tensor = stored[name]
        stop = start + tensor.nbytes
        data[start:stop] = _bytes_of(tensor)
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": tuple(tensor.shape),
            "data_offsets": (start, stop),
        }
        start = stop
    text = canonical_json(header)
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(_SIZE_BYTES, "little") + text
    starts = range(0, len(data), _BLOCK_BYTES)
    parts = [memoryview(head), *(data[at : at + _BLOCK_BYTES].data for at in starts)]
    pending = storage.create(file)
    try:
        for part in parts:
            pending.write(part)
        return pending.publish("".join(f"{crc32c(part):08x}" for part in parts)), len(head)
    finally:
        pending.discard()


class TensorFile:
    """Reads what `write_tensors` has written, from a folder or an address."""

    def __init__(
        self, storage: ReadStorage, file: str, record: FileRecord, header_bytes: int
    ) -> None:
        """Prepare to read; nothing is read yet."""
        self._storage, self._file, self._record = storage, file, record
        self._header_bytes = header_bytes

    def read(self, wanted: Collection[str] | None = None) -> dict[str, torch.Tensor]:
        """Return tensors by name, in the types they had; None: all of them.

        Only the blocks that they lie in are read, and each is checked.

        Raises:
            CacheMismatchError: there is no tensor of a wanted name.
            CacheCorruptError: a block is not what was committed.
        """
        header = json.loads(self._part(0)[_SIZE_BYTES:].tobytes())
        types = header.pop(_METADATA)
        if missing := sorted(set(wanted or ()) - header.keys()):
            raise CacheMismatchError(
                f"{self._storage}/{self._file} has no tensor {missing[0]!r}, expected one of its "
                f"{len(header)}: {', '.join(sorted(header)[:3])}, ...; the model of this teacher "
                "names its parts otherwise, so use a cache of a teacher such as ViT-B-16"
            )
        entries = {name: header[name] for name in (header if wanted is None else wanted)}
        found = {
            name: torch.empty(entry["shape"], dtype=_TYPES[entry["dtype"]])
            for name, entry in entries.items()
        }
        self._fill([(*entries[n]["data_offsets"], _bytes_of(found[n])) for n in entries])
        return {
            name: tensor.to(_TYPES[types[name]]) if name in types else tensor
            for name, tensor in found.items()
        }

    def _fill(self, spans: Sequence[tuple[int, int, Bytes]]) -> None:
        """Copy the bytes [start, stop) behind the header into memory, reading each block once."""
        touched = {
            block_idx
            for start, stop, _ in spans
            for block_idx in range(start // _BLOCK_BYTES, -(-stop // _BLOCK_BYTES))
        }
        with ThreadPoolExecutor(_READ_THREADS) as executor:
            parts = [1 + block_idx for block_idx in sorted(touched)]
            blocks = map_ahead(executor, self._part, parts, _READ_THREADS)
            for part_idx, block in zip(parts, blocks, strict=True):
                first = (part_idx - 1) * _BLOCK_BYTES
                for start, stop, memory in spans:
                    low, high = max(start, first), min(stop, first + len(block))
                    if low < high:
                        memory[low - start : high - start] = block[low - first : high - first]

    def _part(self, part_idx: int) -> Bytes:
        """Return the header, which is part 0, or a block, once it is sound."""
        record, at = self._record, self._header_bytes
        start = at + (part_idx - 1) * _BLOCK_BYTES if part_idx else 0
        stop = min(start + _BLOCK_BYTES, record.num_bytes) if part_idx else at
        expected = record.chunk_crc32c[8 * part_idx : 8 * part_idx + 8]

        def is_sound(part: Bytes) -> bool:
            return f"{crc32c(part.data):08x}" == expected

        part = np.empty(stop - start, np.uint8)
        check = RangeCheck(file_sha256=record.sha256, is_sound=is_sound)
        self._storage.read_into(part, self._file, start, check)
        if not is_sound(part):
            raise CacheCorruptError(
                f"{self._storage}/{self._file}: bytes {start:,} to {stop:,} are not what was "
                f"committed (a damaged, truncated or exchanged file). {MEND}"
            )
        return part


def _narrowest(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float16, if that holds each of its numbers to the bit, or as it is."""
    if not tensor.is_floating_point() or tensor.itemsize <= torch.float16.itemsize:
        return tensor
    narrow = tensor.to(torch.float16)
    is_same = np.array_equal(_bytes_of(narrow.to(tensor.dtype)), _bytes_of(tensor))
    return narrow if is_same else tensor


def _bytes_of(tensor: torch.Tensor) -> Bytes:
    """Return the memory of a tensor, or of its contiguous copy. Shape: any -> (bytes,)."""
    data: Bytes = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return data
