"""Publish what all builders of a cache have to share: the tables of its codecs, and their choice.

Whoever comes first decides: a file is published so that it never replaces one that is there.
Builders that begin at once, even on devices whose last bits differ, all go on with what they then
find, and none waits for another. A file's name holds a digest of all that decides the sample, so
what a killed build of something else has left is not taken for this one's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from ...shared.cache.codecs.choice import CodecChoice
from ...shared.cache.records import decode_record, encode_record
from ...shared.cache.shards import Array, ArrayLayout, write_array
from ...shared.cache.storage import FileRecord, LocalStorage, scratch_folder
from ...shared.errors import MEND, CacheCorruptError

_T = TypeVar("_T")


def publish_choice(
    storage: LocalStorage, name: str, choose: Callable[[], CodecChoice]
) -> CodecChoice:
    """Publish a choice unless there is one, and return the one that there then is.

    Raises:
        CacheCorruptError: what was published is no choice; the storage is failing.
    """

    def held() -> CodecChoice | None:
        try:
            return CodecChoice.from_json(decode_record(storage.read(name), name))
        except (CacheCorruptError, KeyError, TypeError):
            return None

    return _keep_first(storage, name, held, lambda: encode_choice(choose()))


def encode_choice(choice: CodecChoice) -> bytes:
    """Return a choice as it is published."""
    return encode_record(choice.to_json())


def publish_table(
    storage: LocalStorage, layout: ArrayLayout, make: Callable[[], Array]
) -> FileRecord:
    """Publish a table unless there is one, and return the record of the one that there then is.

    Raises:
        CacheCorruptError: what was published is no table; the storage is failing.
    """
    name = layout.shard_name(0)
    with scratch_folder(storage) as scratch:

        def held() -> FileRecord | None:
            """Return the record of what is there, if writing its numbers gives its bytes."""
            stored = storage.read(name)
            num_bytes = 4 * int(np.prod(layout.shape))
            if len(stored) < num_bytes:
                return None
            table = np.frombuffer(stored[:num_bytes], "<f4").reshape(layout.shape)
            record = write_array(scratch, layout, table)[name]
            return record if scratch.read(name) == stored else None

        def made() -> bytes:
            write_array(scratch, layout, make())
            return scratch.read(name)

        return _keep_first(storage, name, held, made)


def _keep_first(
    storage: LocalStorage, name: str, held: Callable[[], _T | None], make: Callable[[], bytes]
) -> _T:
    if storage.exists(name):
        found = held()
        if found is not None:
            return found
        storage.remove(name)  # Damaged.
    storage.keep_first(name, make())
    found = held()
    if found is None:
        raise CacheCorruptError(f"{storage}/{name} is not what was published. {MEND}")
    return found
