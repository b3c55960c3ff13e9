from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
import pytest
from samples import draw_word, write_words

from clipocr.precompute.builder.scan import sample_hashes, scan_sources
from clipocr.shared.charset import LabelRules
from clipocr.shared.data.word_lmdb import find_named_lmdbs
from clipocr.shared.errors import DataError


def scan(root: Path, **rules: object):
    return scan_sources(find_named_lmdbs([root]), LabelRules(**rules))


def edit(path: Path, changes: dict[bytes, bytes | None]) -> None:
    """Change keys of an LMDB behind everyone's back; None deletes."""
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as txn:
        for key, value in changes.items():
            if value is None:
                txn.delete(key)
            else:
                txn.put(key, value)


def test_rows_labels_and_sources(tmp_path: Path) -> None:
    write_words(tmp_path / "MJ" / "val", ["One", "two"])
    write_words(tmp_path / "MJ" / "train", ["two", "One", "three"])
    result = scan(tmp_path)
    assert [s.name for s in result.sources] == ["MJ/train", "MJ/val"]
    assert [s.num_samples for s in result.sources] == [3, 2]
    assert result.rows["source"].tolist() == [0, 0, 0, 1, 1]
    assert result.rows["lmdb_index"].tolist() == [1, 2, 3, 1, 2]
    assert [result.labels[i] for i in result.rows["label"]] == ["two", "One", "three", "One", "two"]
    assert len(result.labels) == 3


def test_labels_are_filtered_in_the_official_order(tmp_path: Path) -> None:
    labels = ["x" * 26, "!" * 30, "a b\tc", "Ünïcode", "日本", "  ", "x" * 25, "!?"]
    write_words(tmp_path / "set", labels)
    result = scan(tmp_path)
    # Charset deletion comes later: punctuation alone is a label here, but counts for the length.
    assert result.labels == ["abc", "Unicode", "x" * 25, "!?"]
    rejected = zip(result.rejected["lmdb_index"], result.rejected["reason"], strict=True)
    assert [(int(i), int(r)) for i, r in rejected] == [(1, 3), (2, 3), (5, 2), (6, 2)]
    assert scan(tmp_path, keep_unicode=True).labels[1:3] == ["Ünïcode", "日本"]


def test_missing_keys_are_rejected_by_index(tmp_path: Path) -> None:
    path = write_words(tmp_path / "set", ["a", "b", "c", "d", "e"])
    edit(path, {b"image-000000002": None, b"label-000000004": None, b"label-000000005": None})
    result = scan(tmp_path)
    assert result.rows["lmdb_index"].tolist() == [1, 3]
    assert result.rejected["lmdb_index"].tolist() == [2, 4, 5]
    assert result.rejected["reason"].tolist() == [0, 1, 1]


def test_num_samples_decides_what_is_there(tmp_path: Path) -> None:
    path = write_words(tmp_path / "set", ["a", "b", "c"])
    edit(path, {b"num-samples": b"2", b"image-extra": b"x", b"label-000000000": b"zero"})
    assert scan(tmp_path).rows["lmdb_index"].tolist() == [1, 2]
    edit(path, {b"num-samples": b"5"})
    assert scan(tmp_path).rejected["lmdb_index"].tolist() == [4, 5]


def test_digest_sees_labels_and_image_sizes(tmp_path: Path) -> None:
    path = write_words(tmp_path / "set", ["a", "b"])
    digests = [scan(tmp_path).sources[0].digest]
    edit(path, {b"label-000000002": b"B"})
    digests.append(scan(tmp_path).sources[0].digest)
    edit(path, {b"image-000000001": draw_word("longer")})
    digests.append(scan(tmp_path).sources[0].digest)
    assert len(set(digests)) == 3
    edit(path, {b"image-000000001": draw_word("a"), b"label-000000002": b"b"})
    assert scan(tmp_path).sources[0].digest == digests[0]


def test_what_is_no_word_lmdb_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no LMDB"):
        find_named_lmdbs([tmp_path])
    path = write_words(tmp_path / "set", ["a"])
    edit(path, {b"num-samples": None})
    with pytest.raises(DataError, match="num-samples"):
        scan(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="other cannot be opened as an LMDB"):
        scan(tmp_path / "other")


def test_a_set_without_a_usable_sample_is_refused(tmp_path: Path) -> None:
    write_words(tmp_path / "set", ["日本", "x" * 26])
    reasons = r"no usable sample.*\(empty label: 1, label too long: 1\).*--keep-unicode"
    with pytest.raises(DataError, match=reasons):
        scan(tmp_path)
    with pytest.raises(DataError, match=r"\(label too long: 2\); look at them with: clipocr data"):
        scan(tmp_path, keep_unicode=True, max_label_length=1)


def test_two_roots_may_not_share_a_name(tmp_path: Path) -> None:
    for root in ("a", "b"):
        write_words(tmp_path / root / "train", ["x"])
    with pytest.raises(DataError, match="both be named 'train'"):
        find_named_lmdbs([tmp_path / "a", tmp_path / "b"])
    assert list(find_named_lmdbs([tmp_path])) == ["a/train", "b/train"]
    assert list(find_named_lmdbs([tmp_path / "a" / "train"])) == ["train"]


def test_order_is_keyed_by_sample_not_by_company() -> None:
    index = np.arange(1, 9, dtype=np.uint32)
    alone = sample_hashes(0, ["ST"], np.zeros(8, np.uint16), index)
    among = sample_hashes(0, ["MJ", "ST"], np.ones(8, np.uint16), index)
    np.testing.assert_array_equal(alone, among)
    assert not np.array_equal(alone, sample_hashes(1, ["ST"], np.zeros(8, np.uint16), index))
