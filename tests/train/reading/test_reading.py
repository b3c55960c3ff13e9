from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_untrained
from click.testing import CliRunner, Result
from oracle import Oracle, painted
from PIL import ExifTags, Image
from samples import draw_word, write_words

import clipocr
from clipocr.cli import main
from clipocr.shared.data.images import ImageProblemError
from clipocr.shared.errors import CheckpointError, DataError, UsageError
from clipocr.train.reading.pictures import find_pictures, pictures_of_stream
from clipocr.train.reading.readers import Reader


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def reader() -> Reader:
    """Reads a red level of 0 as a, of 1 as b, ..."""
    return Reader(Oracle(list("abcdefg"), "36"), batch_size=3)


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("run") / "best.pt").parent


def read_command(*args: object, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, ["read", *map(str, args)], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_every_kind_of_image_reads_the_same(reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    path.write_bytes(painted(1))
    pixels = np.full((20, 50, 3), 1, np.uint8)
    kinds = [path, str(path), painted(1), Image.fromarray(pixels), pixels, pixels[..., 0]]
    for image in kinds:
        assert reader.read(image).text == "b"
    assert [reading.text for reading in reader.read_all(kinds)] == ["b"] * 6


def test_a_picture_is_read_upright_as_exif_says(reader: Reader, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (20, 50), (1, 0, 0)).save(tmp_path / "b.png", exif=exif)
    for image in (tmp_path / "b.png", Image.open(tmp_path / "b.png")):
        assert reader.read(image).size_px == (50, 20)


def test_many_are_read_in_order_with_problems(reader: Reader, tmp_path: Path) -> None:
    letters = "badcgfe"
    images: list[bytes | Path] = [painted("abcdefg".index(c)) for c in letters]
    images.insert(2, b"no image")
    images.insert(5, tmp_path / "none.png")
    words = list(reader.read_all(images))
    found = [word.problem or word.text for word in words]
    assert found == ["b", "a", "not an image", "d", "c", "No such file or directory", *"gfe"]
    assert [word.image for word in words] == images
    assert [(word.size_px, word.confidence) for word in words[2:4:3]] == [(None, 0)]


def test_confidence_is_of_the_characters_and_eos(reader: Reader) -> None:
    reading = reader.read(painted(0))
    # softmax of one 50 among 36 zeros, twice
    each = np.exp(50) / (np.exp(50) + 36)
    assert reading.character_confidence == pytest.approx((each, each))
    assert reading.confidence == pytest.approx(each**2)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "^empty image"),
        (np.zeros((4, 4, 3), np.float32), r"pixels are float32 of shape \(4, 4, 3\)"),
        (np.zeros((4, 0, 3), np.uint8), r"shape \(4, 0, 3\)"),
        (
            np.zeros((4, 4, 4), np.uint8),
            r"shape \(4, 4, 4\), expected uint8 of shape \(height, width, 3\)",
        ),
        (Path("missing.png"), "^missing.png: No such file"),
        ("folder/none.jpg", "^folder/none.jpg: No such file"),
    ],
)
def test_what_is_no_picture_is_named(reader: Reader, image: object, said: str) -> None:
    with pytest.raises(ImageProblemError, match=said):
        reader.read(image)


def test_three_lines_of_python(run_path: Path) -> None:
    reader = clipocr.load(run_path)
    reading = reader.read(draw_word("word"))
    assert reading.text == reader.read(draw_word("word")).text
    assert len(reading.character_confidence) in (len(reading.text), len(reading.text) + 1)
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        clipocr.load(run_path / "none")
    with pytest.raises(UsageError, match="batch_size is 0, expected a whole number from 1"):
        clipocr.load(run_path, batch_size=0)


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("a/2.png", "a/1.JPG", "a/b/3.webp", "a/notes.txt", "[x].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    write_words(tmp_path / "words.lmdb", ["word"])

    def found(*names: str) -> list[str]:
        outcomes = find_pictures([str(tmp_path / name) for name in names])
        return [str(o).replace(f"{tmp_path}/", "") for o in outcomes]

    assert found("a") == ["a/1.JPG", "a/2.png", "a/b/3.webp"]
    assert found("a/*.png", "a/notes.txt") == ["a/2.png", "a/notes.txt"]
    assert found("a/**/*.webp") == ["a/b/3.webp"]
    assert found("[x].png") == ["[x].png"]  # a file's name before a pattern
    assert found("a/*.gif") == ["a/*.gif: no file has such a name"]
    assert found("empty")[0].startswith("empty: no picture in this folder (.avif .bmp .gif")
    assert found("words.lmdb") == [
        "words.lmdb: an LMDB; read it with: clipocr eval RUN --data words.lmdb"
    ]


def test_a_stream_is_one_picture_or_a_list(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    listed = f"{tmp_path}/a.png\r\n\n{tmp_path}/b.png\n".encode()
    assert list(pictures_of_stream(listed)) == [tmp_path / "a.png", tmp_path / "b.png"]
    assert list(pictures_of_stream(painted(1))) == [painted(1)]
    assert list(pictures_of_stream(b"")) == []
    (problem,) = pictures_of_stream(b"\xff\xd8 half a picture")
    assert isinstance(problem, DataError)
    assert "standard input: not an image, and no list of files" in str(problem)


def test_the_command_in_its_three_formats(run_path: Path, tmp_path: Path) -> None:
    names = [tmp_path / "a.png", tmp_path / "tab\there.png"]
    for name, word in zip(names, ("alpha", "bravo"), strict=True):
        name.write_bytes(draw_word(word))
    reader = clipocr.load(run_path)
    readings = [reader.read(name) for name in names]
    tsv = read_command(run_path, tmp_path)
    assert tsv.exit_code == 0
    assert tsv.stdout.splitlines() == [
        f"{name}\t{reading.text}\t{reading.confidence:.4f}"
        for name, reading in zip((names[0], f"{tmp_path}/tab\\there.png"), readings, strict=True)
    ]
    text = read_command(run_path, f"{tmp_path}/*.png", "--format", "text")
    assert text.stdout.splitlines() == [reading.text for reading in readings]
    jsonl = read_command(run_path, "-", "--format", "jsonl", stdin=names[0].read_bytes())
    (line,) = map(json.loads, jsonl.stdout.splitlines())
    assert line["image"] == "-"
    assert line["text"] == readings[0].text
    assert line["confidence"] == pytest.approx(np.prod(line["character_confidence"]))


def test_the_command_names_what_it_cannot_read_and_reads_on(run_path: Path, tmp_path: Path) -> None:
    word, page = tmp_path / "word.png", tmp_path / "page.png"
    word.write_bytes(draw_word("word"))
    page.write_bytes(encoded(Image.new("RGB", (1240, 1754))))
    (tmp_path / "broken.png").write_bytes(word.read_bytes()[:60])
    stdin = f"{tmp_path}/broken.png\n{word}\n".encode()
    result = read_command(run_path, tmp_path / "none*", page, "-", stdin=stdin)
    assert result.exit_code == 1
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [str(page), str(word)]
    first, second, third = result.stderr.splitlines()
    assert first == f"{tmp_path}/none*: no file has such a name"
    assert second == f"{tmp_path}/broken.png: damaged image"
    assert third == (
        f"{page}: 1240x1754 is the size of a page or a line; cut its words out with a text "
        "detector first"
    )
