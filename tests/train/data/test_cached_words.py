"""`clipocr.open_cache`: what it shows is what the cache holds, read a chunk at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import WORDS

import clipocr
from clipocr.shared.cache.codecs.codecs import unfilter_pixels
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.shards import ArrayReader
from clipocr.shared.errors import CacheMismatchError, CacheMissingError
from clipocr.train.data.cached_words import CachedWords


@pytest.fixture
def words(cache_path: Path) -> CachedWords:
    return clipocr.open_cache(cache_path)


@pytest.fixture
def chunks_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Arrays of which a chunk was read, one entry a chunk."""
    read: list[str] = []
    original = ArrayReader.chunk

    def chunk(self: ArrayReader, *args: object, **kwargs: object) -> np.ndarray:
        read.append(self.layout.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ArrayReader, "chunk", chunk)
    return read


def test_every_word_whose_picture_could_be_decoded_is_there(words: CachedWords) -> None:
    assert len(words) == 2 * len(WORDS) + 13 - 1
    keys = {(word.source, word.lmdb_index): word.label for word in words}
    assert len(keys) == len(words)
    mj = {key: label for key, label in keys.items() if key[0] == "MJ/train"}
    assert mj == {("MJ/train", i): word for i, word in enumerate(WORDS * 2, start=1)}
    assert ("ST", 3) not in keys  # Its picture is none.
    assert keys["ST", 4] == WORDS[3]


def test_a_word_is_what_the_cache_holds(words: CachedWords, cache: FeatureCache) -> None:
    row = 5
    rows = cache.rows(0)
    word = words[row]
    assert not cache.unit(0, 0).bad_rows
    assert word.lmdb_index == rows["lmdb_index"][row]
    stored = torch.tensor(cache.image_reader(0, "pixels").rows(row, row + 1))
    assert np.array_equal(word.view, unfilter_pixels(stored)[0].numpy())
    assert (word.view.shape, word.view.dtype) == ((32, 128, 3), np.uint8)
    assert list(word.images) == ["block1", "block2", "block3"]
    for name, values in word.images.items():
        stored = torch.tensor(cache.image_reader(0, name).rows(row, row + 1))
        assert np.array_equal(values, cache.codec(name).decode(stored)[0].float().numpy())
        assert (values.shape, values.dtype) == (cache.spec.image(name).row_shape, np.float32)


def test_text_is_that_of_the_label(words: CachedWords, cache: FeatureCache) -> None:
    table = cache.text_table("char-36")
    for word in words[:9]:
        assert word.adapted_label == "".join(c for c in word.label.lower() if c.isalnum())
        number = table.strings.index(word.adapted_label)
        assert set(word.text) == {"block1", "block2", "block3", "eot"}
        assert np.array_equal(word.text["eot"], table.arrays["eot"][number].astype(np.float32))
        expected = table.arrays["block2"][table.nodes[number]]
        assert np.array_equal(word.text["block2"], expected.astype(np.float32))


def test_slices_and_iteration_read_each_chunk_once(
    words: CachedWords, chunks_read: list[str]
) -> None:
    spec = words.cache.spec
    some = words[3:20]  # Of chunks of 8.
    assert chunks_read.count("image/view0/block1") == 3
    assert [word.lmdb_index for word in some] == [words[i].lmdb_index for i in range(3, 20)]
    chunks_read.clear()
    assert len(list(words)) == len(words)
    num_chunks = sum(
        -(-(stop - start) // spec.chunk_rows)
        for start, stop in map(spec.unit_range, words.cache.units())
    )
    assert chunks_read.count("image/view0/block1") == num_chunks
    assert not any(name.startswith("text/") for name in chunks_read)
    assert words[10 - len(words)].lmdb_index == words[10].lmdb_index
    assert words[10].images["block1"].base is None  # It does not keep its chunk.
    assert words[20:3:-4][0].lmdb_index == words[20].lmdb_index
    with pytest.raises(IndexError, match="word 72 of 72"):
        words[len(words)]


def test_arrays_that_are_not_asked_for_are_not_read(
    cache_path: Path, chunks_read: list[str]
) -> None:
    words = clipocr.open_cache(str(cache_path), images=["block2"])
    assert list(words[0].images) == ["block2"]
    assert {name for name in chunks_read if name.startswith("image/")} == {
        "image/view0/block2", "image/view0/pixels",
    }  # fmt: skip


def test_what_is_not_there_is_named(cache_path: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheMissingError, match="not a feature cache"):
        clipocr.open_cache(tmp_path)
    with pytest.raises(CacheMismatchError, match="holds image arrays block1, block2, block3"):
        clipocr.open_cache(cache_path, images=["block9"])
    with pytest.raises(CacheMismatchError, match="no text table 'char-94', only char-36"):
        clipocr.open_cache(cache_path, text="char-94")
    with pytest.raises(CacheMismatchError, match="has 1 views, expected one from 0 to 0, not 1"):
        clipocr.open_cache(cache_path, view=1)


def test_a_half_built_cache_has_the_words_of_its_units(cache_path: Path, tmp_path: Path) -> None:
    half = shutil.copytree(cache_path, tmp_path / "half.cache")
    (half / "sealed.json").unlink()
    (record,) = half.glob("commits/view0/unit-00001.json")
    assert json.loads(record.read_text())
    record.unlink()
    some = clipocr.open_cache(half)
    every = clipocr.open_cache(cache_path)
    assert len(some) < len(every)
    keys = [(word.source, word.lmdb_index) for word in every]
    assert [(word.source, word.lmdb_index) for word in some] == [
        key for key in keys if key in {(word.source, word.lmdb_index) for word in some}
    ]


def test_the_loader_is_the_one_that_trains(words: CachedWords) -> None:
    loader = words.loader(
        batch_size=16, images=["block3"], text=["block1", "eot"], charset="36", device="cpu"
    )
    batches = list(loader.epoch(0))
    assert len(batches) == loader.batches_per_epoch == 5
    assert sum(len(batch.labels) for batch in batches) == len(words)
    by_view = {word.view.tobytes(): word for word in words}
    for i, label in enumerate(batches[1].labels):
        word = by_view[batches[1].views[i].numpy().tobytes()]
        assert label == word.adapted_label
        assert np.array_equal(batches[1].images["block3"][i].numpy(), word.images["block3"])
        assert np.array_equal(batches[1].text["eot"][i].float().numpy(), word.text["eot"])
    bare = words.loader(batch_size=72, pixels=False, device="cpu")
    (batch,) = bare.epoch(0)
    assert (batch.views, dict(batch.images), dict(batch.text)) == (None, {}, {})
    with pytest.raises(CacheMismatchError, match="has 1 views of these units"):
        words.loader(views=2)
