"""LMDBs and image folders as test sets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from oracle import Oracle, painted, write_painted

from clipocr.shared.charset import Charset
from clipocr.shared.data.images import ImageProblemError
from clipocr.shared.errors import DataError
from clipocr.train.evaluation.evaluate import evaluate_sets
from clipocr.train.evaluation.test_sets import TestSet, open_test_sets
from clipocr.train.reading.readers import Reader


def open_all(root: Path, max_label_length: int = 25) -> list[TestSet]:
    return open_test_sets([root], Charset.load("36"), max_label_length)


def write_folder(folder: Path, labels: str, num_images: int, name: str = "gt.tsv") -> None:
    (folder / "words").mkdir(parents=True)
    for i in range(num_images):
        (folder / "words" / f"{i}.png").write_bytes(painted(i))
    (folder / name).write_text(labels, encoding="utf-8")


def test_lmdbs_and_image_folders_are_found_at_any_depth(tmp_path: Path) -> None:
    write_painted(tmp_path / "deep" / "SVT", ["a"])
    write_folder(tmp_path / "mine", "words/0.png\tAb\nwords/1.png\tcd\n", 2)
    write_folder(tmp_path / "theirs", json.dumps({"words/0.png": "x"}), 1, "labels.json")
    sets = open_all(tmp_path)
    assert [test_set.name for test_set in sets] == ["deep/SVT", "mine", "theirs"]
    assert [(s.image, s.label, s.adapted_label) for s in sets[1].pictures] == [
        ("words/0.png", "Ab", "ab"),
        ("words/1.png", "cd", "cd"),
    ]
    # Right under the root itself as well, and by its name.
    (alone,) = open_all(tmp_path / "mine")
    assert alone.name == "mine"
    assert [s.image for s in alone.pictures] == ["words/0.png", "words/1.png"]


def test_label_files_are_read_as_data_import_reads_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "ic15", 'words/0.png, "say \\"a\\""\n', 1, "gt.txt")
    write_folder(tmp_path / "easy", 'file,words\nwords/0.png,"b, c"\n', 1, "labels.csv")
    write_folder(tmp_path / "doctr", json.dumps({"0.png": "d"}), 1, "labels.json")
    (tmp_path / "doctr" / "words").rename(tmp_path / "doctr" / "images")
    sets = open_all(tmp_path)
    assert [(s.name, s.pictures[0].label) for s in sets] == [
        ("doctr", "d"),
        ("easy", "b, c"),
        ("ic15", 'say "a"'),
    ]
    assert [s.image(s.pictures[0].image) for s in sets] == [painted(0)] * 3


def test_what_is_wrong_in_an_image_folder_counts_as_wrong_with_its_reason(tmp_path: Path) -> None:
    lines = ["words/0.png\tzero", "words/gone.png\tone", "../up.png\ttwo", "note.txt\tthree",
             "words/1.png\t", "words/1.png\tagain", "./words/0.png\ttwice"]  # fmt: skip
    write_folder(tmp_path / "set", "\n".join(lines), 2)
    (tmp_path / "up.png").write_bytes(painted(0))
    (tmp_path / "set" / "note.txt").write_text("no picture")
    (test_set,) = open_all(tmp_path)
    # A file's first label counts; an empty one leaves it out.
    assert test_set.num_unlabelled == 1
    (result,) = evaluate_sets(Reader(Oracle(["zero"])), [test_set]).sets
    assert [(s.image, s.problem, s.is_correct) for s in result.words] == [
        ("words/0.png", None, True),
        ("words/gone.png", "no such file", False),
        ("../up.png", "outside the image folder", False),
        ("note.txt", "not an image", False),
    ]
    assert result.num_broken == 3
    with pytest.raises(ImageProblemError, match="no such file"):
        test_set.image("words/gone.png")


def test_labels_that_are_too_long_for_a_student_do_not_count(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["four", "fives"])
    (test_set,) = open_all(tmp_path, max_label_length=4)
    assert ([s.label for s in test_set.pictures], test_set.num_unlabelled) == (["four"], 1)


def test_the_digest_is_of_samples_labels_and_sizes(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", "words/0.png\ta\nwords/1.png\tb\n", 2)
    digests = [open_all(tmp_path)[0].digest()]
    assert open_all(tmp_path)[0].digest() == digests[0]
    (tmp_path / "set" / "gt.tsv").write_text("words/0.png\ta\nwords/1.png\tc\n")
    digests.append(open_all(tmp_path)[0].digest())
    os.truncate(tmp_path / "set" / "words" / "1.png", 10)
    digests.append(open_all(tmp_path)[0].digest())
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no LMDB .* no image folder .* at or below .*clipocr data import"),
        (
            {"gt.txt": "a.png a", "labels.txt": "a.png a"},
            r"holds several label files: gt.txt \('a.png a'\), labels.txt .* expected one",
        ),
        ({"gt.txt": "a.png a"}, "gt.txt names no file that is there; expected lines such as"),
        ({"labels.json": "[1]"}, "not a JSON object"),
    ],
)
def test_what_is_no_test_set_is_named(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_all(tmp_path)


def test_what_is_no_test_set_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_painted(tmp_path / "SVT", ["a", "b"])
    write_painted(tmp_path / "japanese", ["東京"])
    for name, text in (("gt.txt", "see labels.json\n"), ("more/labels.txt", "These are notes.")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [test_set.name for test_set in open_all(tmp_path)] == ["SVT"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["Left out"] * 3
    for what in ("gt.txt names no file", "labels.txt names no file", "japanese: no label is left"):
        assert sum(what in line for line in said) == 1


def test_a_damaged_lmdb_is_not_left_out(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["a"])
    write_painted(tmp_path / "B", ["b"])
    (tmp_path / "B" / "data.mdb").write_bytes(b"no LMDB" * 2000)
    with pytest.raises(DataError, match="B cannot be opened as an LMDB"):
        open_all(tmp_path)
