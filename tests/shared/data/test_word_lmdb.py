"""Word LMDBs: the layout other tools read, and what happens when writing is cut short.

The helper `raw_lmdb` uses `lmdb` itself, so reader and writer cannot vouch for each other.
"""

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor

import lmdb
import pytest

from clipocr.shared.data import word_lmdb as words
from clipocr.shared.data.word_lmdb import WordLmdb, WordLmdbWriter, find_lmdbs
from clipocr.shared.errors import DataError, UsageError


def raw_lmdb(path, items: dict[bytes, bytes]):
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for key, value in items.items():
            txn.put(key, value)
    return path


def raw_items(path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor())


def two_words(path):
    return raw_lmdb(
        path,
        {
            b"num-samples": b"2",
            b"image-000000001": b"one",
            b"label-000000001": b"Eins",
            b"image-000000002": b"two",
            b"label-000000002": "Zwölf".encode(),
        },
    )


def test_writer_writes_the_layout_of_the_str_toolkits(tmp_path) -> None:
    with WordLmdbWriter(tmp_path / "new" / "words.lmdb") as writer:
        writer.add_all([(b"one", "Eins"), (b"two", "Zwölf")])
    assert raw_items(tmp_path / "new" / "words.lmdb") == raw_items(two_words(tmp_path / "raw"))
    assert sorted(os.listdir(tmp_path / "new")) == ["words.lmdb"]
    assert os.listdir(tmp_path / "new" / "words.lmdb") == ["data.mdb"]


def test_reader_yields_samples_in_order_counted_from_one(tmp_path) -> None:
    source = WordLmdb(two_words(tmp_path / "raw"))
    assert len(source) == 2
    assert list(source) == [(1, b"one", "Eins"), (2, b"two", "Zwölf")]
    assert source.image(3) is None
    assert source.label(3) is None


def test_label_that_is_not_utf8_reads_as_none(tmp_path) -> None:
    path = raw_lmdb(tmp_path / "x", {b"num-samples": b"1", b"label-000000001": b"\xff"})
    assert WordLmdb(path).label(1) is None


def test_writer_outgrows_its_first_map(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(words, "_FIRST_MAP_BYTES", 1 << 16)
    monkeypatch.setattr(words, "_SAMPLES_PER_TRANSACTION", 10)
    with WordLmdbWriter(tmp_path / "x") as writer:
        writer.add_all((bytes([i]) * 5000, str(i)) for i in range(95))
    source = WordLmdb(tmp_path / "x")
    assert len(source) == 95
    assert all(image == bytes([i - 1]) * 5000 and label == str(i - 1) for i, image, label in source)


def test_reader_survives_pickling_and_spawn(tmp_path) -> None:
    source = WordLmdb(two_words(tmp_path / "raw"))
    assert source.label(1) == "Eins"  # opened before it travels
    assert pickle.loads(pickle.dumps(source)).label(2) == "Zwölf"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(WordLmdb.label, source, 2).result() == "Zwölf"


def test_two_readers_of_one_lmdb_may_coexist(tmp_path) -> None:
    path = two_words(tmp_path / "raw")
    assert [WordLmdb(path).label(1), WordLmdb(tmp_path / "." / "raw").label(2)] == ["Eins", "Zwölf"]


def test_lmdb_without_num_samples_is_refused_with_its_path(tmp_path) -> None:
    path = raw_lmdb(tmp_path / "x", {b"image-000000001": b"one"})
    with pytest.raises(DataError, match=r"x is an LMDB without the key 'num-samples'"):
        len(WordLmdb(path))


@pytest.mark.parametrize("value", [b"many", b"-1", b"1000000000", b"99999999999999999999"])
def test_impossible_num_samples_is_refused(tmp_path, value: bytes) -> None:
    with pytest.raises(DataError, match="num-samples is"):
        len(WordLmdb(raw_lmdb(tmp_path / "x", {b"num-samples": value})))


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_file_that_is_no_lmdb_is_refused(tmp_path, content: bytes) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "data.mdb").write_bytes(content)
    with pytest.raises(DataError, match="cannot be opened as an LMDB"):
        len(WordLmdb(tmp_path / "x"))


def test_truncated_lmdb_is_refused_instead_of_killing_the_process(tmp_path) -> None:
    with WordLmdbWriter(tmp_path / "x") as writer:
        writer.add_all((b"x" * 5000, "x") for _ in range(100))
    os.truncate(tmp_path / "x" / "data.mdb", 100_000)
    with pytest.raises(DataError, match=r"is truncated: 100000 bytes, expected \d{6}"):
        list(WordLmdb(tmp_path / "x"))


def test_interrupted_writer_leaves_nothing(tmp_path) -> None:
    def samples():
        yield b"one", "Eins"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), WordLmdbWriter(tmp_path / "x") as writer:
        writer.add_all(samples())
    assert os.listdir(tmp_path) == []


def test_interrupted_overwrite_keeps_the_old_lmdb(tmp_path) -> None:
    before = raw_items(two_words(tmp_path / "x"))
    writer = WordLmdbWriter(tmp_path / "x", overwrite=True)
    with pytest.raises(ValueError, match="unpack"), writer:
        writer.add_all([(b"new", "neu"), (b"no label",)])
    assert os.listdir(tmp_path) == ["x"]
    assert raw_items(tmp_path / "x") == before


def test_remains_of_a_killed_writer_are_neither_found_nor_in_the_way(tmp_path) -> None:
    killed = WordLmdbWriter(tmp_path / "x")
    killed.__enter__()
    two_words(tmp_path / "other")
    assert find_lmdbs(tmp_path) == [tmp_path / "other"]
    killed._env.close()
    with WordLmdbWriter(tmp_path / "x") as writer:
        writer.add(b"one", "Eins")
    assert sorted(os.listdir(tmp_path)) == ["other", "x"]


def test_overwrite_replaces_an_lmdb(tmp_path) -> None:
    two_words(tmp_path / "x")
    with pytest.raises(UsageError, match="--overwrite"):
        WordLmdbWriter(tmp_path / "x")
    with WordLmdbWriter(tmp_path / "x", overwrite=True) as writer:
        writer.add(b"new", "neu")
    assert list(WordLmdb(tmp_path / "x")) == [(1, b"new", "neu")]


def test_overwrite_never_deletes_anything_but_an_lmdb(tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"me")
    (tmp_path / "notes").write_text("notes")
    for name in ("photos", "notes"):
        with pytest.raises(UsageError, match="not an LMDB"):
            WordLmdbWriter(tmp_path / name, overwrite=True)
    assert (tmp_path / "photos" / "me.jpg").read_bytes() == b"me"


def test_overwrite_through_a_link_replaces_what_it_points_to(tmp_path) -> None:
    two_words(tmp_path / "x")
    (tmp_path / "link").symlink_to("x")
    with WordLmdbWriter(tmp_path / "link", overwrite=True) as writer:
        writer.add(b"new", "neu")
    assert (tmp_path / "link").is_symlink()
    assert list(WordLmdb(tmp_path / "x")) == [(1, b"new", "neu")]


def test_find_lmdbs_goes_deep_follows_links_and_counts_nothing_twice(tmp_path) -> None:
    root = tmp_path / "root"
    for name in ("b", "a/train", "a/val"):
        (root / name).mkdir(parents=True)
        two_words(root / name)
    (root / "a" / "up").symlink_to(root)
    (root / "z").symlink_to(root / "b")
    (tmp_path / "elsewhere").mkdir()
    two_words(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    assert find_lmdbs(root) == [root / name for name in ("a/train", "a/val", "b", "c")]
    assert find_lmdbs(root / "b") == [root / "b"]


def test_find_lmdbs_says_what_is_missing(tmp_path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        find_lmdbs(tmp_path / "nowhere")
    with pytest.raises(DataError, match="clipocr data import"):
        find_lmdbs(tmp_path)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_keys_that_are_numbered_in_another_way_are_refused(tmp_path, kind: str) -> None:
    other = f"{kind}-1".encode()
    path = raw_lmdb(tmp_path / "other", {b"num-samples": b"1", other: b"x"})
    with pytest.raises(DataError, match=rf"keys such as '{kind}-1'; expected 9 digits, such as"):
        len(WordLmdb(path))
    # Keys of another kind beside the right ones are nobody's business.
    items = {**raw_items(two_words(tmp_path / "raw")), other: b"x", b"image-size-1": b"x"}
    assert len(WordLmdb(raw_lmdb(tmp_path / "more", items))) == 2
