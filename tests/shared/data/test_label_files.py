"""Label files: which form they are found to have, and what they then say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipocr.shared.data.label_files import read_label_file
from clipocr.shared.errors import DataError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "text", "form", "expected"),
    [
        ("gt.tsv", "a b.png\tx y\n", "tsv", [("a b.png", "x y")]),
        ("gt.tsv", 'file\twords\na.png\t"x"\n', "tsv", [("a.png", '"x"')]),
        ("gt.txt", "a.png x y\r\nb.png  z\r\n", "space", [("a.png", "x y"), ("b.png", "z")]),
        ("gt.txt", "\ufeffa.png x\n\n  \n", "space", [("a.png", "x")]),
        ("gt.txt", "a.png\nb.png x", "space", [("a.png", ""), ("b.png", "x")]),
        # A file with spaces in its name: the first line lacks its label, "b.png" is none.
        ("gt.txt", "a b.png\nc.png\tx\n", "tsv", [("a b.png", ""), ("c.png", "x")]),
        # One tab among spaces is one more space.
        (
            "gt.txt",
            "a.png x\nb.png\ty z\nc.png z\n",
            "space",
            [("a.png", "x"), ("b.png", "y z"), ("c.png", "z")],
        ),
        ("gt.txt", "\tx\n", "tsv", [("", "x")]),
        # U+2028 is a line separator to str.splitlines, but part of a label here.
        ("gt.txt", "a.png x\u2028y\n", "space", [("a.png", "x\u2028y")]),
        ("labels.json", '{"a.png": "x", "b.png": ""}', "json", [("a.png", "x"), ("b.png", "")]),
        ("labels.json", '{"a.png": "x", "a.png": "y"}', "json", [("a.png", "x"), ("a.png", "y")]),
        ("labels.json", "{}", "json", []),
        # ICDAR: commas and escaped quotes in labels.
        (
            "gt.txt",
            '\ufeffa.png, "PRIVATE"\r\nb.png, "say \\"hi\\", \\\\o/"\r\nc.png, ""\r\n',
            "icdar",
            [("a.png", "PRIVATE"), ("b.png", 'say "hi", \\o/'), ("c.png", "")],
        ),
        # A space before the quotes is ICDAR's, so its backslashes escape.
        ("gt.txt", 'a.png, "C:\\\\d"\n', "icdar", [("a.png", "C:\\d")]),
        # CSV: doubled quotes, quoted commas, with and without names of columns.
        (
            "labels.csv",
            'filename,words\na.png,"x, y"\nb.png,"say ""hi"""\n"a b.png",z\n',
            "csv",
            [("a.png", "x, y"), ("b.png", 'say "hi"'), ("a b.png", "z")],
        ),
        ("labels.csv", 'a.png,"x"\nb.png,"y"\n', "csv", [("a.png", "x"), ("b.png", "y")]),
        ("gt.txt", "a.png, it's\nb.png,5\" x\n", "csv", [("a.png", "it's"), ("b.png", '5" x')]),
        # PaddleOCR's list of pictures of one label.
        (
            "rec_gt_train.txt",
            '["a.png", "b.png"]\tx\nc.png\t["a.png"]\n',
            "tsv",
            [("a.png", "x"), ("b.png", "x"), ("c.png", '["a.png"]')],
        ),
        ("gt.tsv", "[a.png\tx\na.png\ty\n", "tsv", [("[a.png", "x"), ("a.png", "y")]),
        # MJSynth, whose number after the space is no label.
        (
            "annotation.txt",
            "./9/1_Lube_45.jpg 45\n./9/2_a_b_0.jpg 0\n",
            "mjsynth",
            [("./9/1_Lube_45.jpg", "Lube"), ("./9/2_a_b_0.jpg", "a_b")],
        ),
        ("gt.txt", "9/1_Lube_45.jpg 7\n", "space", [("9/1_Lube_45.jpg", "7")]),
    ],
)
def test_the_form_is_found(tmp_path: Path, name: str, text: str, form: str, expected: list) -> None:
    make(tmp_path, "a.png", "b.png", "c.png", "a b.png", "9/1_Lube_45.jpg", "9/2_a_b_0.jpg")
    (tmp_path / name).write_bytes(text.encode())
    reading = read_label_file(tmp_path / name)
    assert [(entry.name, entry.label) for entry in reading.entries] == expected
    assert reading.format == form
    assert not any(entry.problem for entry in reading.entries)
    told = read_label_file(tmp_path / name, wanted=form)
    assert told.entries == reading.entries


def test_what_was_read_is_said_with_an_example(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png")
    (tmp_path / "gt.txt").write_text('a.png, ""\nb.png, "x"\n')
    said = f"Read {tmp_path}/gt.txt as icdar (file, \"label\"): b.png is 'x'"
    assert str(read_label_file(tmp_path / "gt.txt")) == said


def test_two_readings_that_fit_are_an_error_which_shows_both(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png")
    (tmp_path / "gt.txt").write_text('a.png,"x"\nb.png,"C:\\\\d"\n')
    with pytest.raises(DataError, match="can be read in two ways") as raised:
        read_label_file(tmp_path / "gt.txt")
    shown = str(raised.value).partition(": ")[2]
    assert shown == (
        r"""'b.png,"C:\\\\d"' says that b.png is 'C:\\d' as icdar, and b.png 'C:\\\\d' as csv; """
        "choose one by: clipocr data import --format icdar, or --format csv"
    )
    for form, label in (("icdar", "C:\\d"), ("csv", "C:\\\\d")):
        assert read_label_file(tmp_path / "gt.txt", wanted=form).entries[1].label == label
    # A file that only one of two names decides.
    (tmp_path / "gt.txt").write_text("c d.png\tx\n")
    make(tmp_path, "c d.png")
    assert read_label_file(tmp_path / "gt.txt").format == "tsv"
    make(tmp_path, "c")
    with pytest.raises(DataError, match=r"c d.png is 'x' as tsv, and c 'd.png.tx' as space"):
        read_label_file(tmp_path / "gt.txt")


def test_lines_that_a_form_does_not_know_say_why(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "labels.csv").write_text('a.png,x\nb.png,y\nc.png,Hello, world\nd.png,"x\n')
    problems = [entry.problem for entry in read_label_file(tmp_path / "labels.csv").entries]
    assert problems[:3] == ["", "", "3 fields, expected 2; quote a label that holds a comma"]
    assert problems[3].startswith("not CSV: ")
    (tmp_path / "gt.txt").write_text('a.png, "x"\nb.png, "a \\"q\\""\nc.png, "the "best""\n')
    entries = read_label_file(tmp_path / "gt.txt").entries
    assert [entry.problem for entry in entries] == ["", "", 'not of the form: file, "label"']
    assert entries[2].name == "c.png"


@pytest.mark.parametrize(
    ("label_file", "image", "line"),
    [
        ("rec/gt.txt", "rec/x.png", "x.png\tw"),
        ("rec/labels.json", "rec/images/x.png", '{"x.png": "w"}'),  # docTR
        ("rec/rec_gt_train.txt", "rec/train/x.png", "train/x.png\tw"),  # PaddleOCR
        ("rec/rec_gt_train.txt", "rec/train/x.png", "rec/train/x.png\tw"),
        ("top/rec/rec_gt_train.txt", "top/rec/train/x.png", "top/rec/train/x.png\tw"),
        ("lists/mine.txt", "rec/train/x.png", "train/x.png\tw"),
    ],
)
def test_names_are_found_from_where_they_count(
    tmp_path: Path, label_file: str, image: str, line: str
) -> None:
    make(tmp_path, label_file, image)
    (tmp_path / label_file).write_text(line)
    root = tmp_path / ("top/rec" if label_file.startswith("top") else "rec")
    reading = read_label_file(tmp_path / label_file, root)
    (entry,) = reading.entries
    assert os.path.samefile(reading.base / entry.name, tmp_path / image)
    assert entry.label == "w"


def test_a_few_files_of_a_long_list_decide(tmp_path: Path) -> None:
    # Of a thousand lines one in five is looked at first: none whose file is there.
    make(tmp_path, "images/x, 7.png")
    (tmp_path / "gt.txt").write_text("".join(f'"x, {i}.png",w{i}\n' for i in range(1000)))
    reading = read_label_file(tmp_path / "gt.txt")
    assert (reading.format, reading.base) == ("csv", tmp_path / "images")
    assert reading.entries[7] == ("x, 7.png", "w7", "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gt.txt", b"a.png \xff\n", r"not UTF-8 \(byte 6\)"),
        ("labels.json", b"{", "not JSON"),
        ("labels.json", b'["a.png"]', "not a JSON object"),
        ("labels.json", b'{"a.png": 5}', "not a JSON object"),
        ("labels.json", b'{"a.png": {"text": "x"}}', "not a JSON object"),
    ],
)
def test_unreadable_label_files_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_label_file(tmp_path / name)
