from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loading import loader_of, needing
from samples import tiny_build, write_words

from clipocr.precompute.builder.build import build_cache
from clipocr.shared.cache.codecs.codecs import unfilter_pixels
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.shared.errors import CacheCorruptError, CacheMismatchError, UsageError
from clipocr.train.data.batch import Batch
from clipocr.train.data.loader import CacheLoader
from clipocr.train.methods.base import Needs, TextNeeds

NEEDS = needing(("block1", "block3"), ("block2", "eot"))


def loader(cache: FeatureCache, needs: Needs = NEEDS, **changes: object) -> CacheLoader:
    return loader_of(cache, needs, **changes)


def fingerprints(batches: list[Batch]) -> list[bytes]:
    """Return the pixels of every row, in order."""
    return [view.numpy().tobytes() for batch in batches for view in batch.views]


def test_an_epoch_is_every_usable_row_once(cache: FeatureCache) -> None:
    rows = loader(cache, batch_size=9)
    batches = list(rows.epoch(0))
    assert rows.num_rows == 72  # 73 rows, one of them a bad image.
    assert rows.batches_per_epoch == len(batches) == 8
    labels = sorted(label for batch in batches for label in batch.labels)
    table = cache.text_table("char-36")
    expected = [
        table.strings[table.of_label[label]]
        for unit_idx in cache.units()
        for row, label in enumerate(cache.rows(unit_idx)["label"], start=unit_idx * 32)
        if row not in cache.unit(0, unit_idx).bad_rows
    ]
    assert labels == sorted(expected)


def test_features_belong_to_their_rows(cache: FeatureCache) -> None:
    views = unfilter_pixels(torch.from_numpy(cache.image_reader(0, "pixels").all().copy()))
    row_of = {view.numpy().tobytes(): row for row, view in enumerate(views)}
    block = {tap: cache.image_reader(0, f"block{tap}").all() for tap in (1, 3)}
    text = cache.text_table("char-36")
    for batch in loader(cache).epoch(3):
        num_positions = max(map(len, batch.labels)) + 1
        assert batch.text["block2"].shape == (12, num_positions, 32)
        for i, (view, label) in enumerate(zip(batch.views, batch.labels, strict=True)):
            row = row_of[view.numpy().tobytes()]
            for tap in (1, 3):
                assert torch.equal(batch.images[f"block{tap}"][i], torch.tensor(block[tap][row]))
            text_id = text.strings.index(label)
            nodes = text.nodes[text_id, :num_positions]
            assert torch.equal(batch.text["block2"][i], torch.tensor(text.arrays["block2"][nodes]))
            assert torch.equal(batch.text["eot"][i], torch.tensor(text.arrays["eot"][text_id]))


def test_text_that_lies_on_the_device_is_the_same(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = list(loader(cache).epoch(1))
    monkeypatch.setattr("clipocr.train.data.labels._room_on", lambda _: 1 << 30)
    rows = loader(cache)
    for encoded, batch, expected in zip(
        rows.encoded_batches(1), rows.epoch(1), gathered, strict=True
    ):
        # Numbers of rows are all that a batch brings along.
        assert {t.dtype for t in encoded.text.values()} == {torch.int32}
        assert batch.text.keys() == expected.text.keys() == {"block2", "eot"}
        for name, features in expected.text.items():
            assert torch.equal(batch.text[name], features)


def test_order_is_a_function_of_seed_and_epoch(cache: FeatureCache) -> None:
    def order(seed: int, epoch: int) -> list[bytes]:
        return fingerprints(list(loader(cache, seed=seed).epoch(epoch)))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_epochs_take_the_views_in_turn(data_root: Path, tmp_path: Path) -> None:
    build_cache(tiny_build(data_root, tmp_path / "cache", augment="randaugment", views=2))
    cache = FeatureCache.open(tmp_path / "cache")
    pixels = [
        {view.numpy().tobytes() for view in unfilter_pixels(torch.from_numpy(rows.copy()))}
        for rows in (cache.image_reader(v, "pixels").all() for v in range(2))
    ]
    rows = loader(cache)
    for epoch in range(4):
        assert set(fingerprints(list(rows.epoch(epoch)))) <= pixels[epoch % 2]
    only_first = loader(cache, views=1)
    assert set(fingerprints(list(only_first.epoch(1)))) <= pixels[0]
    with pytest.raises(CacheMismatchError, match=r"has 2 views .*this run needs 3.*--views 2"):
        loader(cache, views=3)


@pytest.mark.parametrize("first_batch", range(7))
def test_resuming_at_any_batch_sees_the_rest(cache: FeatureCache, first_batch: int) -> None:
    rows = loader(cache)
    whole = list(rows.epoch(1))
    assert len(whole) == 6
    assert fingerprints(list(rows.epoch(1, first_batch))) == fingerprints(whole[first_batch:])


@pytest.mark.parametrize("world_size", [2, 3, 5, 12])
def test_processes_share_the_batches_of_one(cache: FeatureCache, world_size: int) -> None:
    needs = replace(NEEDS, pads_together=True)
    whole = list(loader(cache, needs, batch_size=20).epoch(2))
    parts = [
        list(loader(cache, needs, batch_size=20, rank=rank, world_size=world_size).epoch(2))
        for rank in range(world_size)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(fingerprints(shares)) == sorted(fingerprints([batch]))
        assert {share.num_positions for share in shares} == {batch.num_positions}
        assert {share.text["block2"].shape[1] for share in shares} == {batch.num_positions}
        assert shares[0].parts == tuple((len(s.labels), batch.num_positions) for s in shares)
    # 72 rows in batches of 20: no process has more than its share, rounded up.
    assert max(len(batch.labels) for share in parts for batch in share) <= -(-20 // world_size) + 1


def test_more_processes_than_rows_in_a_batch_are_refused(cache: FeatureCache) -> None:
    with pytest.raises(UsageError, match=r"13 processes cannot share batches of 12 rows"):
        loader(cache, rank=0, world_size=13)


def test_order_does_not_depend_on_threads(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []
    for threads in (1, 4):
        monkeypatch.setattr("clipocr.train.data.loader._READ_THREADS", threads)
        orders.append(fingerprints(list(loader(cache).epoch(0))))
    assert orders[0] == orders[1]


def test_reads_whole_chunks_and_holds_only_those_that_lanes_are_in(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two lanes: 36 rows each of ten chunks of 7 or 8.
    monkeypatch.setattr("clipocr.train.data.order.NUM_LANES", 2)
    rows, read = loader(cache, batch_size=4), []
    reader = rows._readers[0]["pixels"]
    real = reader.chunk
    reader.chunk = lambda *where, memory: (read.append(where), real(*where, memory=memory))[1]
    try:
        list(rows.epoch(0))
    finally:
        del reader.chunk
    assert set(read) == {(unit, chunk) for unit in range(3) for chunk in range(4)} - {
        (2, 2),
        (2, 3),
    }
    # The chunk in which one lane ends and the other begins may be read for each.
    assert len(read) <= 11
    num_open = 0
    for step in rows._steps(0, 0):
        num_open += len(step.to_open)
        assert num_open <= 4
        num_open -= len(step.to_close)
        assert num_open <= 2


def test_long_labels_are_left_out(cache: FeatureCache) -> None:
    rows = loader(cache, max_label_length=4, batch_size=4)
    labels = {label for batch in rows.epoch(0) for label in batch.labels}
    assert labels <= {"echo", "golf", "kilo", "lima", "mike", "papa", "xray", "zulu", "one",
                      "two", "333"}  # fmt: skip
    with pytest.raises(UsageError, match=r"1 have .* none has a label of at most 2 characters"):
        loader(cache, max_label_length=2)


def test_a_fraction_reads_that_share_of_rows(cache: FeatureCache) -> None:
    # 73 rows in units of 32, 32 and 9.
    assert cache.first_rows(0.001) == {0: 1}
    assert cache.first_rows(0.3) == {0: 22}
    assert cache.first_rows(0.7) == {0: 32, 1: 19}
    assert cache.first_rows(1.0) == {0: 32, 1: 32, 2: 9}
    some, whole = loader(cache, fraction=0.3), loader(cache)
    assert some.num_rows in (21, 22)  # One of the 73 is bad.
    labels = {label for batch in some.epoch(0) for label in batch.labels}
    assert len(labels) < len({label for batch in whole.epoch(0) for label in batch.labels})
    rows = cache.rows(0)["label"][:22]
    assert labels <= {cache.labels()[i].lower() for i in rows}


def test_fewer_rows_than_a_batch_make_one_batch(cache: FeatureCache) -> None:
    rows = loader(cache, batch_size=500)
    assert [len(batch.labels) for batch in rows.epoch(0)] == [72]


def test_a_cache_without_an_array_is_refused(cache: FeatureCache) -> None:
    with pytest.raises(CacheMismatchError, match="this run needs block9"):
        loader(cache, needing(("block9",)))
    with pytest.raises(CacheMismatchError, match="this run needs block9"):
        loader(cache, needing(text=("block9",)))


LABELS = Needs(
    pixels=False, text=TextNeeds(tokenizer="char", arrays=("block2", "eot")), epoch="labels"
)


def test_an_epoch_over_labels_is_every_label_once(cache: FeatureCache) -> None:
    rows = loader(cache, LABELS)
    table = cache.text_table("char-36")
    orders = []
    for epoch in (0, 1):
        batches = list(rows.epoch(epoch))
        labels = [label for batch in batches for label in batch.labels]
        assert sorted(labels) == sorted(table.strings)
        assert rows.num_rows == len(labels)
        orders.append(labels)
        for batch in batches:
            assert batch.views is None
            assert batch.images == {}
            for i, label in enumerate(batch.labels):
                text_id = table.strings.index(label)
                nodes = table.nodes[text_id, : batch.num_positions]
                expected = torch.tensor(table.arrays["block2"][nodes])
                assert torch.equal(batch.text["block2"][i], expected)
                assert torch.equal(batch.text["eot"][i], torch.tensor(table.arrays["eot"][text_id]))
    assert orders[0] != orders[1]
    rest = [label for batch in rows.epoch(1, first_batch=2) for label in batch.labels]
    assert rest == orders[1][24:]


def test_an_epoch_over_labels_is_of_the_units_that_count(cache: FeatureCache) -> None:
    of_unit = {
        cache.text_table("char-36").strings[i]
        for i in cache.text_table("char-36").of_label[cache.rows(2)["label"]]
    }
    batches = loader(cache, LABELS, units={2: 9}).epoch(0)
    assert {label for batch in batches for label in batch.labels} == of_unit


def test_processes_share_an_epoch_over_labels(cache: FeatureCache) -> None:
    needs = replace(LABELS, pads_together=True)
    whole = list(loader(cache, needs).epoch(0))
    parts = [list(loader(cache, needs, rank=r, world_size=2).epoch(0)) for r in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(label for share in shares for label in share.labels) == sorted(batch.labels)
        assert {share.num_positions for share in shares} == {batch.num_positions}


def test_labels_alone_need_no_text_table(cache: FeatureCache) -> None:
    upper = Charset(name="upper", characters="ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    rows = loader_of(cache, Needs(), upper)  # The cache has a table for charset 36 only.
    batches = list(rows.epoch(0))
    assert rows.num_rows == 70  # Twice there is no letter in 333.
    labels = {label for batch in batches for label in batch.labels}
    assert {"ALPHA", "FOUR"} <= labels
    assert {batch.text == {} for batch in batches} == {True}
    with pytest.raises(ValueError, match="an epoch over labels has no pictures"):
        Needs(epoch="labels")


def test_a_damaged_unit_stops_the_epoch_by_name(data_root: Path, tmp_path: Path) -> None:
    build_cache(tiny_build(data_root, tmp_path / "cache"))
    shard = tmp_path / "cache/image/view0/block3/c/1/0/0"
    data = bytearray(shard.read_bytes())
    data[1234] ^= 4
    shard.write_bytes(data)
    with pytest.raises(CacheCorruptError, match=r"c/1/0/0: chunk \d is not"):
        list(loader(FeatureCache.open(tmp_path / "cache")).epoch(0))


def test_a_half_built_cache_is_usable(cache_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(cache_path, out)
    (out / "sealed.json").unlink()
    (out / "commits/view0/unit-00001.json").unlink()
    half = FeatureCache.open(out)
    assert half.units() == [0, 2]
    num_bad = sum(len(half.unit(0, unit_idx).bad_rows) for unit_idx in (0, 2))
    assert loader(half, batch_size=5).num_rows == 32 + 9 - num_bad


def test_labels_the_charset_cannot_write_are_left_out(tmp_path: Path) -> None:
    write_words(tmp_path / "data" / "set", ["one", "two", "!!", "333"])
    digits = Charset(name="digits", characters="0123456789")
    build_cache(tiny_build(tmp_path / "data", tmp_path / "cache", charset=digits))
    cache = FeatureCache.open(tmp_path / "cache")
    assert cache.spec.num_rows == 4
    rows = loader_of(cache, needing(), digits, batch_size=2)
    assert [batch.labels for batch in rows.epoch(0)] == [["333"]]


def test_leaving_an_epoch_early_leaves_no_thread(cache: FeatureCache) -> None:
    before = threading.active_count()
    batches = loader(cache).epoch(0)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_batches_that_are_kept_stay_as_they_are(cache: FeatureCache) -> None:
    rows = loader(cache, batch_size=9)
    kept = list(rows.epoch(0))
    copies = [(batch.images["block3"].clone(), batch.text["eot"].clone()) for batch in kept]
    for epoch in (1, 2):
        list(rows.epoch(epoch))
    for batch, (tap, eot) in zip(kept, copies, strict=True):
        assert torch.equal(batch.images["block3"], tap)
        assert torch.equal(batch.text["eot"], eot)


def test_batches_that_are_let_go_leave_their_memory_to_later_ones(cache: FeatureCache) -> None:
    rows = loader(cache, batch_size=4)
    places = {batch.text["eot"].data_ptr() for epoch in range(3) for batch in rows.epoch(epoch)}
    # One with the caller, one being put together, those that wait between, one of the last epoch.
    assert len(places) <= 6


def test_each_process_pads_to_its_own_longest_label_unless_all_do(cache: FeatureCache) -> None:
    text = TextNeeds(tokenizer="char", arrays=("block1",))
    for pads_together in (False, True):
        needs = Needs(text=text, pads_together=pads_together)
        whole = list(loader(cache, needs).epoch(0))
        parts = [list(loader(cache, needs, rank=r, world_size=2).epoch(0)) for r in range(2)]
        differ = 0
        for batch, *shares in zip(whole, *parts, strict=True):
            longest = max(map(len, batch.labels))
            assert batch.text["block1"].shape[1] == longest + 1
            assert batch.parts == ()
            sizes = tuple((len(s.labels), s.text["block1"].shape[1]) for s in shares)
            for share in shares:
                assert share.parts == sizes
                own = max(map(len, share.labels), default=0)
                differ += own != longest
                wanted = longest if pads_together else own
                assert share.text["block1"].shape[1] == wanted + 1
        assert differ
