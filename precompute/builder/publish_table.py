"""Publish the table of a codec so that all builders of a cache go on with the same one.

A file is published so that it never replaces one that is there: of builders that begin at once,
even on devices whose last bits differ, the first one decides, all go on with what they then find,
and none waits for another. The table's folder is named by a digest of all that decides it, so what
a killed build of something else has left is not taken for this one's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...shared.cache.shards import Array, ArrayLayout, write_array
from ...shared.cache.storage import FileRecord, LocalStorage, scratch_folder
from ...shared.errors import MEND, CacheCorruptError


def publish_table(
    storage: LocalStorage, layout: ArrayLayout, make: Callable[[], Array]
) -> FileRecord:
    """Publish a table unless there is one, and return the record of the one that there then is."""
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

        if storage.exists(name):
            record = held()
            if record is not None:
                return record
            storage.remove(name)  # Damaged.
        write_array(scratch, layout, make())
        storage.keep_first(name, scratch.read(name))
        record = held()
    if record is None:
        raise CacheCorruptError(f"{storage}/{name} is not what was published. {MEND}")
    return record
