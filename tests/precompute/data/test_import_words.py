"""Importing a folder: every entry is either written or reported."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from clipocr.precompute.data.import_words import import_words
from clipocr.precompute.data.options import ImportOptions
from clipocr.shared.data.word_folders import find_label_file
from clipocr.shared.data.word_lmdb import WordLmdb
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
    problems, notes = [], []
    counts = import_words(
        source,
        out,
        ImportOptions(**options),
        on_problem=problems.append,
        on_note=notes.append,
    )
    assert len(notes) == 1
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


def test_label_file_must_be_one(folder, tmp_path) -> None:
    assert find_label_file(folder) == folder / "gt.tsv"
    (folder / "labels.json").write_text('{"a.png": "Two"}')
    said = (
        r"several label files: gt.tsv \('a.png\\tEins'\), labels.json \('{\"a.png\": \"Two\"}'\); "
        "expected one; pass --labels FILE to choose"
    )
    with pytest.raises(DataError, match=said):
        run(folder, tmp_path / "out")
    counts, _ = run(folder, tmp_path / "out", labels=Path("labels.json"))  # In the folder.
    assert counts == (1, 0, 2)
    with pytest.raises(UsageError, match=r"--labels more\.txt is no file, neither here nor in SRC"):
        run(folder, tmp_path / "out2", labels=Path("more.txt"))
    (folder / "labels.json").unlink()
    (folder / "gt.tsv").unlink()
    with pytest.raises(DataError, match=r"no label file; expected gt or labels .*--labels"):
        run(folder, tmp_path / "out2")


def test_label_file_may_lie_elsewhere(folder, tmp_path) -> None:
    labels = tmp_path / "mine.json"
    labels.write_text(json.dumps({"spare.png": "drei"}))
    counts, problems = run(folder, tmp_path / "out", labels=labels)
    assert counts[0] == 1
    assert problems == ["a.png: image without a label", "sub/b c.jpg: image without a label"]


def read_back(path) -> list[tuple[bytes, str]]:
    return [(image, label) for _, image, label in WordLmdb(path)]


WORDS = {"1_Lube_45484": "Lube", "22_half_a_7": "half_a", "3_X-9_0": "X-9"}


def test_images_may_be_named_by_their_labels(tmp_path) -> None:
    source = tmp_path / "mj" / "2425" / "1"
    source.mkdir(parents=True)
    for seed, name in enumerate(WORDS):
        (source / f"{name}.jpg").write_bytes(image_bytes(seed, "JPEG"))
    expected = [(image_bytes(seed, "JPEG"), label) for seed, label in enumerate(WORDS.values())]
    assert run(tmp_path / "mj", tmp_path / "a") == ((3, 0, 0), [])
    assert read_back(tmp_path / "a") == expected
    run(tmp_path / "mj", tmp_path / "b", format="names")
    assert [label for _, label in read_back(tmp_path / "b")] == list(WORDS)
    # One image of another name, and it is no folder of MJSynth's any more, unless told.
    (source / "else.jpg").write_bytes(image_bytes(9, "JPEG"))
    with pytest.raises(DataError, match=r"no label file; .*--format names"):
        run(tmp_path / "mj", tmp_path / "c")
    _, problems = run(tmp_path / "mj", tmp_path / "c", format="mjsynth")
    assert problems == ["2425/1/else.jpg: not named NUMBER_LABEL_NUMBER.jpg"]
    assert read_back(tmp_path / "c") == expected
    with pytest.raises(UsageError, match="--format names reads no label file"):
        ImportOptions(format="names", labels=source)


def test_mjsynths_own_list(tmp_path) -> None:
    (tmp_path / "mj" / "9").mkdir(parents=True)
    for seed, name in enumerate(WORDS):
        (tmp_path / "mj" / "9" / f"{name}.jpg").write_bytes(image_bytes(seed, "JPEG"))
    lines = [f"./9/{name}.jpg {name.rpartition('_')[2]}\n" for name in WORDS]
    (tmp_path / "mj" / "annotation_train.txt").write_text("".join(lines[:2]))
    counts, problems = run(tmp_path / "mj", tmp_path / "out")
    assert (counts, problems) == ((2, 0, 1), ["9/3_X-9_0.jpg: image without a label"])
    assert [label for _, label in read_back(tmp_path / "out")] == ["Lube", "half_a"]


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
        archive.writestr("__MACOSX/src/._a.png", b"junk")
        archive.writestr("../outside.png", b"evil")
        archive.writestr("/abs.png", b"evil")
    return path


def tarred(folder, path):
    mode = "w:gz" if path.suffix == ".gz" else "w"
    with tarfile.open(path, mode) as archive:
        archive.add(folder, "src")
        for name in ("../outside.png", "/abs.png"):
            archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("src/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../outside.png"
        archive.addfile(link)
    return path


@pytest.mark.parametrize("name", ["src.zip", "src.tar", "src.tar.gz"])
def test_an_archive_is_read_as_the_folder_in_it(folder, tmp_path, name: str) -> None:
    (tmp_path / "deep").mkdir()
    archive = (zipped if name == "src.zip" else tarred)(folder, tmp_path / "deep" / name)
    shutil.rmtree(folder)
    counts, problems = run(archive, tmp_path / "deep" / "out")
    assert read_back(tmp_path / "deep" / "out") == [
        (image_bytes(1), "Eins"),
        (image_bytes(2, "JPEG"), "zwei drei"),
    ]
    assert counts == (2, 0, 1)
    assert problems[:2] == [
        f"{member}: leads out of the archive, not unpacked"
        for member in ("../outside.png", "/abs.png")
    ]
    assert problems[-1] == "spare.png: image without a label"
    # Nothing lies outside, and what was unpacked is gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out", name]


def test_what_is_no_archive_or_a_damaged_one_is_named(folder, tmp_path) -> None:
    whole = zipped(folder, tmp_path / "src.zip").read_bytes()
    (tmp_path / "text.zip").write_text("no archive")
    for name, content, said in (
        ("text.zip", b"no archive", "is neither a folder nor a zip or tar archive"),
        ("cut.zip", whole.replace(image_bytes(1)[50:90], bytes(40)), "cannot be unpacked: Bad CRC"),
        ("cut.tar.gz", tarred(folder, tmp_path / "x.tar.gz").read_bytes()[:900], "be unpacked"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=said):
            run(tmp_path / name, tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_an_error_in_an_archive_names_the_archive(folder, tmp_path) -> None:
    (folder / "gt.tsv").write_bytes(b"a.png\t\xff")
    archive = zipped(folder, tmp_path / "src.zip")
    with pytest.raises(DataError, match=rf"^{archive}/gt.tsv is not UTF-8"):
        run(archive, tmp_path / "out")


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
