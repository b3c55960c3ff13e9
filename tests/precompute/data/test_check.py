"""Checking LMDBs: what is counted as broken, left out, or merely odd."""

import io
import os

import lmdb
import numpy as np
import pytest
from commands import invoke
from PIL import Image

from clipocr.precompute.data import check
from clipocr.precompute.data.check import check_lmdbs
from clipocr.precompute.data.options import CheckOptions
from clipocr.shared.charset import Charset, LabelRules
from clipocr.shared.errors import DataError

CHARSET = Charset.load("36")
OPTIONS = CheckOptions(jobs=1)


def png(*, noise: bool = False) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50), np.uint8)
    Image.fromarray(pixels if noise else np.zeros((4, 9), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_lmdb(path, samples: dict, num_samples: bytes | None):
    """Write (image, label) by number, None for a missing key."""
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as txn:
        if num_samples is not None:
            txn.put(b"num-samples", num_samples)
        for idx, (image, label) in samples.items():
            if image is not None:
                txn.put(b"image-%09d" % idx, image)
            if label is not None:
                txn.put(b"label-%09d" % idx, label)
    return path


def check_one(path, **options: object):
    (report,) = check_lmdbs([path], CheckOptions(**options))
    return report


def test_sound_lmdb(tmp_path) -> None:
    labels = [b"one", b"three", b"eleven"]
    samples = {i: (png(), label) for i, label in enumerate(labels, start=1)}
    report = check_one(make_lmdb(tmp_path / "x", samples, b"3"))
    assert report.is_sound
    assert (report.num_samples, report.num_extra) == (3, 0)
    assert report.label_lengths == {3: 1, 5: 1, 6: 1}
    assert report.outside(CHARSET) == {}


def test_empty_lmdb_is_sound(tmp_path) -> None:
    report = check_one(make_lmdb(tmp_path / "x", {}, b"0"))
    assert (report.is_sound, report.num_samples) == (True, 0)


def test_labels_are_counted_by_reason_length_and_character(tmp_path) -> None:
    labels = ["Ünïcödé", "it's", "It's", "", " ", "x" * 26, "!?", "!" * 25 + "a"]
    samples = {i: (png(), label.encode()) for i, label in enumerate(labels, start=1)}
    report = check_one(make_lmdb(tmp_path / "x", samples, b"8"))
    assert report.is_sound  # labels that are left out are not broken
    assert report.label_problems == {
        "empty label": 2,
        "label too long": 2,
        "nothing left in charset 36": 1,
    }
    assert report.label_lengths == {7: 1, 4: 2, 2: 1}
    assert report.outside(CHARSET) == {"'": 2, "!": 1, "?": 1}
    # A charset of one case writes the other too: the I of "It's" is not outside, the U is.
    missing = {"U": 1, "n": 1, "c": 1, "o": 1, "d": 1, "e": 1, "'": 2, "!": 1, "?": 1}
    assert report.outside(Charset(name="lower", characters="its")) == missing


def test_other_scripts_are_outside_only_if_kept(tmp_path) -> None:
    path = make_lmdb(tmp_path / "x", {1: (png(), "東a".encode())}, b"1")
    assert check_one(path).outside(CHARSET) == {}
    kept = check_one(path, labels=LabelRules(keep_unicode=True))
    assert kept.outside(CHARSET) == {"東": 1}
    assert kept.label_lengths == {2: 1}


def test_labels_that_are_changed_are_counted(tmp_path) -> None:
    # An accent has an ASCII form, a letter of another script none.
    labels = ["Ünïcödé", "New York", "東京2020", "नमस्ते", "a\tb", "plain"]
    samples = {i: (png(), label.encode()) for i, label in enumerate(labels, start=1)}
    path = make_lmdb(tmp_path / "x", samples, b"6")
    report = check_one(path)
    assert (report.num_losing, report.num_spaced) == (2, 2)
    assert report.label_problems == {"empty label": 1}  # The third is 2020 now.
    assert check_one(path, labels=LabelRules(keep_unicode=True)).num_losing == 0
    result = invoke("data", "check", path)
    assert "losing letters      2, reduced to ASCII; or --keep-unicode" in result.stdout
    assert "with whitespace     2, which is dropped" in result.stdout


def test_broken_samples_are_listed_by_key_with_the_reason(tmp_path) -> None:
    samples = {
        1: (png(), b"fine"),
        2: (b"", b"x"),
        3: (b"junk", b"x"),
        4: (None, b"x"),
        5: (png(), None),
        6: (png(), b"\xff"),
        7: (png(noise=True)[:-500], None),
    }
    report = check_one(make_lmdb(tmp_path / "x", samples, b"7"))
    assert not report.is_sound
    assert report.broken == [
        ("image-000000002", "empty image"),
        ("image-000000003", "not an image"),
        ("image-000000004", "missing"),
        ("label-000000005", "missing or not UTF-8"),
        ("label-000000006", "missing or not UTF-8"),
        ("image-000000007", "damaged image"),
        ("label-000000007", "missing or not UTF-8"),
    ]


def test_keys_beyond_num_samples_are_a_remark(tmp_path) -> None:
    samples = {i: (png(), b"a") for i in range(1, 6)}
    report = check_one(make_lmdb(tmp_path / "x", samples, b"3"))
    assert report.is_sound
    assert (report.num_samples, report.num_extra) == (3, 4)  # two images, two labels
    assert report.label_lengths == {1: 3}


def test_unusable_lmdbs_are_reported_beside_the_others(tmp_path) -> None:
    make_lmdb(tmp_path / "a", {1: (png(), b"a")}, None)
    make_lmdb(tmp_path / "b", {1: (png(), b"a")}, b"1")
    make_lmdb(tmp_path / "c", {1: (png(), b"a")}, b"-4")
    make_lmdb(tmp_path / "e", {1: (png(), b"a")}, b"900000000")
    make_lmdb(tmp_path / "d", dict.fromkeys(range(1, 99), (b"x" * 4000, b"a")), b"98")
    os.truncate(tmp_path / "d" / "data.mdb", 50_000)
    reports = check_lmdbs([tmp_path], OPTIONS)
    assert [report.path.name for report in reports] == ["a", "b", "c", "d", "e"]
    assert [report.is_sound for report in reports] == [False, True, False, False, False]
    problems = [reports[i].problem for i in (0, 2, 3, 4)]
    expected = ["num-samples", "b'-4'", "truncated", "only 3 keys"]
    for problem, part in zip(problems, expected, strict=True):
        assert part in problem


def test_a_path_named_twice_is_checked_once(tmp_path) -> None:
    path = make_lmdb(tmp_path / "x", {1: (png(), b"a")}, b"1")
    reports = check_lmdbs([path, tmp_path, path], OPTIONS)
    assert [report.path for report in reports] == [path]
    with pytest.raises(DataError, match="not a folder"):
        check_lmdbs([path, tmp_path / "nowhere"], OPTIONS)


def test_processes_find_what_one_process_finds(tmp_path, monkeypatch) -> None:
    samples = {i: (png() if i % 7 else b"junk", b"ab" * (i % 5)) for i in range(1, 101)}
    make_lmdb(tmp_path / "x", samples, b"100")
    make_lmdb(tmp_path / "y", {1: (b"", b"z")}, b"1")
    alone = check_lmdbs([tmp_path], OPTIONS)
    assert [len(report.broken) for report in alone] == [14, 1]
    monkeypatch.setattr(check, "_CHUNK_SAMPLES", 30)
    monkeypatch.setattr(check, "_INLINE_SAMPLES", 0)
    assert check_lmdbs([tmp_path], CheckOptions(jobs=2)) == alone
