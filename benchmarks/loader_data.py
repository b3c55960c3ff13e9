"""Feature caches of any size for `loader`, made of the rows of a small real one.

The small cache is built from real words by the builder itself, with a teacher of the shapes of
ViT-B/16 and three blocks of random weights: what features say is nothing to a loader, how many
bytes they take is. Its rows are then written again and again into a larger cache, by the writer
that the builder uses; units, chunks, shards, checksums and records are a real cache's.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.builder.config import BuildConfig
from clipocr.precompute.builder.scan import hash_keys
from clipocr.shared.cache import names
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.json_record import encode_record
from clipocr.shared.cache.names import MANIFEST_NAME
from clipocr.shared.cache.reader import FeatureCache, publish_seal
from clipocr.shared.cache.records import Committed, Manifest, UnitRecord
from clipocr.shared.cache.shards import (
    GROUP_METADATA,
    Array,
    ArrayReader,
    ArrayWriter,
    write_array,
    write_metadata,
)
from clipocr.shared.cache.storage import FileRecord, LocalStorage
from clipocr.shared.data.word_lmdb import WordLmdb, WordLmdbWriter, find_named_lmdbs

TAPS = (1, 2, 3)
_TEACHER = "ViT-B-16-of-three-blocks"
_CONFIG = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 3, "width": 768, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 3,
    },
}


def sample_words(data: Path, out: Path, num_words: int) -> Path:
    """Copy words of the LMDBs below `data`, from all of them in turn, into one LMDB."""
    lmdbs = [WordLmdb(path) for path in find_named_lmdbs((data,)).values()]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*lmdbs))
    words = ((w[1], w[2]) for w in in_turn if w is not None and w[1] and w[2])
    with WordLmdbWriter(out, overwrite=True) as writer:
        writer.add_all(itertools.islice(words, num_words))
    return out


def build_small(words: Path, out: Path, codec: str) -> FeatureCache:
    """Build a cache of all `words` with the small teacher."""
    for name, config in ((_TEACHER, _CONFIG), (f"{_TEACHER}-quickgelu", _CONFIG)):
        path = out.parent / f"{name}.json"
        path.write_text(json.dumps({**config, "quick_gelu": name.endswith("quickgelu")}))
        open_clip.add_model_config(path)
    config = BuildConfig(
        data=(words,), out=out, teacher=f"{_TEACHER}/random:0", image_taps=TAPS, text_taps=TAPS,
        codec=tuple(map(Codec.parse, codec.split(","))),
    )  # fmt: skip
    return build_cache(config).cache


def repeat_rows(small: FeatureCache, out: Path, num_rows: int) -> FeatureCache:
    """Write a cache of `num_rows` rows: those of `small`, over and over."""
    storage = LocalStorage(out)
    manifest = _write_index(small, storage, num_rows)
    _copy_text(small, storage, manifest)
    cache = FeatureCache(storage, manifest, Committed())
    for unit_idx in range(manifest.spec.num_units):
        _write_unit(small, cache, unit_idx)
    publish_seal(storage, manifest)
    return FeatureCache.open(out)


def bytes_per_row(cache: FeatureCache) -> float:
    """Return the stored bytes of a row, pixels and taps."""
    units = [cache.unit(0, unit_idx) for unit_idx in cache.units()]
    view = sum(file.num_bytes for unit in units for file in unit.files.values())
    return view / cache.spec.num_rows


def _write_index(small: FeatureCache, storage: LocalStorage, num_rows: int) -> Manifest:
    spec = replace(small.spec, num_rows=num_rows)
    kept = ("zarr.json", "rows/zarr.json", "labels/", "rejected/", "codec/zarr.json")
    files = {
        name: storage.write(name, small.storage.read(name))
        for name in small.manifest.files
        if name.startswith(kept)
    }
    stop = small.spec.num_rows
    for key, layout in spec.row_layouts().items():
        reader = ArrayReader(small.storage, small.spec.row_layouts()[key], small.manifest.files)
        files |= write_array(storage, layout, np.resize(reader.rows(0, stop), num_rows))
    tables = small.manifest.codec_layouts()
    for key, layout in spec.codec_layouts(files).items():
        group = names.metadata_file(names.parents(layout.name)[0])
        files[group] = storage.write(group, GROUP_METADATA)
        table = ArrayReader(small.storage, tables[key], small.manifest.files).all()
        files |= write_array(storage, layout, table)
    manifest = replace(small.manifest, spec=spec, files=files)
    storage.write(MANIFEST_NAME, encode_record(manifest.to_json()))
    return manifest


def _copy_text(small: FeatureCache, storage: LocalStorage, manifest: Manifest) -> None:
    shutil.copytree(small.folder.root / "text", storage.root / "text", dirs_exist_ok=True)
    for record in small.committed.texts.values():
        moved = replace(record, cache_id=manifest.cache_id)
        storage.write(names.record_file(moved.name), encode_record(moved))


def _write_unit(small: FeatureCache, cache: FeatureCache, unit_idx: int) -> None:
    start, stop = cache.spec.unit_range(unit_idx)
    group = names.metadata_file(names.view_group(0))
    files: dict[str, FileRecord] = {group: cache.folder.ensure(group, GROUP_METADATA)}
    for key, layout in cache.spec.image_layouts(0).items():
        writer = ArrayWriter(cache.folder, layout, unit_idx)
        for rows in _rows_again_and_again(small.image_reader(0, key).all(), start, stop):
            writer.append(rows)
        files |= {**write_metadata(cache.folder, layout), **writer.publish()}
    cache.publish(
        UnitRecord(
            view_idx=0,
            unit_idx=unit_idx,
            cache_id=cache.manifest.cache_id,
            files=files,
            rows=(start, stop),
            keys_sha256=hash_keys(cache.rows(unit_idx)),
        )
    )


def _rows_again_and_again(rows: Array, start: int, stop: int) -> Iterator[Array]:
    while start < stop:
        at = start % len(rows)
        part = rows[at : at + stop - start]
        yield part
        start += len(part)
