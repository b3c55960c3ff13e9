"""Importing a folder: every entry is either written or reported."""

import io
import json
import os

import lmdb
import numpy as np
import pytest
from PIL import Image

from clipocr.precompute.data.import_words import import_words
from clipocr.precompute.data.options import ImportOptions
from clipocr.shared.data.word_folders import find_label_file, read_label_file
from clipocr.shared.errors import DataError, UsageError


def image_bytes(seed: int = 0, file_format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 50, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three images, and a label file for two of them."""
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "a.png").write_bytes(image_bytes(1))
    (source / "sub" / "b c.jpg").write_bytes(image_bytes(2, "JPEG"))
    (source / "spare.png").write_bytes(image_bytes(3))
    (source / "gt.tsv").write_text("a.png\tEins\nsub/b c.jpg\tzwei drei\n", encoding="utf-8")
    return source


def run(source, out, **options):
    problems = []
    counts = import_words(source, out, ImportOptions(**options), on_problem=problems.append)
    return counts, problems


def raw_items(path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor())


def test_images_go_in_as_they_are_in_the_order_of_the_labels(folder, tmp_path) -> None:
    counts, problems = run(folder, tmp_path / "out")
    assert raw_items(tmp_path / "out") == {
        b"num-samples": b"2",
        b"image-000000001": image_bytes(1),
        b"label-000000001": b"Eins",
        b"image-000000002": image_bytes(2, "JPEG"),
        b"label-000000002": b"zwei drei",
    }
    assert problems == ["spare.png: image without a label"]
    assert counts == (2, 0, 1)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gt.tsv", "a b.png\tx y\n", [("a b.png", "x y")]),
        ("gt.txt", "a.png x y\r\nb.png  z\r\n", [("a.png", "x y"), ("b.png", "z")]),
        ("gt.txt", "\ufeffa.png x\n\n  \n", [("a.png", "x")]),
        ("gt.txt", "a.png\nb.png x", [("a.png", ""), ("b.png", "x")]),
        # Tabs make it a table: the first line lacks its label, "b.png" is none.
        ("gt.txt", "a b.png\nc.png\tx\n", [("a b.png", ""), ("c.png", "x")]),
        # One tab among spaces is one more space.
        (
            "gt.txt",
            "a.png x\nb.png\ty z\nc.png z\n",
            [("a.png", "x"), ("b.png", "y z"), ("c.png", "z")],
        ),
        ("gt.txt", "\tx\n", [("", "x")]),
        # U+2028 is a line separator to str.splitlines, but part of a label here.
        ("gt.txt", "a.png x\u2028y\n", [("a.png", "x\u2028y")]),
        ("labels.json", '{"a.png": "x", "b.png": ""}', [("a.png", "x"), ("b.png", "")]),
        ("labels.json", '{"a.png": "x", "a.png": "y"}', [("a.png", "x"), ("a.png", "y")]),
        ("labels.json", "{}", []),
    ],
)
def test_label_formats(tmp_path, name: str, text: str, expected: list) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_label_file(tmp_path / name) == expected


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
def test_unreadable_label_files_are_refused(tmp_path, name: str, content, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_label_file(tmp_path / name)


def test_label_file_must_be_one(folder, tmp_path) -> None:
    assert find_label_file(folder) == folder / "gt.tsv"
    (folder / "labels.json").write_text("{}")
    with pytest.raises(DataError, match=r"several label files: gt.tsv, labels.json; .*--labels"):
        run(folder, tmp_path / "out")
    (folder / "labels.json").unlink()
    (folder / "gt.tsv").unlink()
    with pytest.raises(DataError, match=r"no label file; expected one of gt.tsv, .*--labels"):
        run(folder, tmp_path / "out")


def test_label_file_may_lie_elsewhere(folder, tmp_path) -> None:
    labels = tmp_path / "mine.json"
    labels.write_text(json.dumps({"spare.png": "drei"}))
    counts, problems = run(folder, tmp_path / "out", labels=labels)
    assert counts[0] == 1
    assert problems == ["a.png: image without a label", "sub/b c.jpg: image without a label"]


def test_every_unusable_entry_is_reported_with_its_reason(folder, tmp_path) -> None:
    (tmp_path / "outside.png").write_bytes(image_bytes())
    (folder / "escape.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "cut.jpg").write_bytes(image_bytes(4, "JPEG")[:-400])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.png").write_bytes(b"<html>")
    os.mkfifo(folder / "pipe.png")
    entries = {
        "../outside.png": "outside the image folder",
        str(tmp_path / "other.png"): "outside the image folder",
        "escape.png": "outside the image folder",
        "missing.png": "no such file",
        "sub": "not a file",
        "pipe.png": "not a file",
        "cut.jpg": "damaged image",
        "empty.png": "empty image",
        "page.png": "not an image",
        "./a.png": "named more than once; the first label counts",
        "nul\0.png": "not the name of a file",
        "x" * 300 + ".png": "File name too long",
    }
    lines = [f"{name}\tlabel" for name in ("a.png", "spare.png", *entries)]
    lines += ["sub/b c.jpg\t ", "\tlabel"]
    (folder / "gt.tsv").write_text("\n".join(lines))
    counts, problems = run(folder, tmp_path / "out")
    assert problems[: len(entries)] == [f"{name}: {reason}" for name, reason in entries.items()]
    assert problems[len(entries) : len(entries) + 2] == [
        "sub/b c.jpg: no label",
        "(no name): not the name of a file",
    ]
    assert problems[len(entries) + 2 :] == ["loop.png: image without a label"]
    assert counts[:2] == (2, len(entries) + 2)


def test_label_with_half_a_character_is_reported(folder, tmp_path) -> None:
    (folder / "gt.tsv").unlink()
    (folder / "labels.json").write_text(r'{"a.png": "\ud800", "spare.png": "x"}')
    _, problems = run(folder, tmp_path / "out")
    assert problems[0] == "a.png: label is not valid Unicode"


@pytest.mark.parametrize("text", ["", "missing.png\tx\n"])
def test_nothing_usable_is_an_error_and_leaves_no_lmdb(folder, tmp_path, text: str) -> None:
    (folder / "gt.tsv").write_text(text)
    with pytest.raises(DataError, match="names no usable image"):
        run(folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["src"]


def test_lmdb_may_not_lie_in_the_folder_and_not_replace_it(folder) -> None:
    for inside in (folder, folder / "out.lmdb", folder / "deep" / ".." / "deep" / "out.lmdb"):
        with pytest.raises(UsageError, match=r"lies in .* would count every word twice"):
            run(folder, inside, overwrite=True)
    with pytest.raises(UsageError, match="not an LMDB"):
        run(folder, folder.parent, overwrite=True)
    assert (folder / "a.png").read_bytes() == image_bytes(1)
