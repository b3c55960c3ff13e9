"""The scripts of examples/ do what they say, on a cache of a few drawn words."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from oracle import write_painted
from PIL import Image
from samples import WORDS, deep_build, draw_word, write_words
from timm.models import ConvNeXt

import clipocr
from clipocr.precompute.builder.build import build_cache

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LEARNED = WORDS[:6]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_words(root / "drawn", LEARNED * 8)
    return root


@pytest.fixture(scope="module")
def cache(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "words.cache"
    build_cache(deep_build(data, out))
    return out


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run of `own_encoder.py`, which knows its few words by heart, and what was printed."""
    folder = tmp_path_factory.mktemp("own_encoder")
    (folder / "word.png").write_bytes(draw_word(LEARNED[0]))
    main = runpy.run_path(str(EXAMPLES / "own_encoder.py"))["main"]
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        main(str(cache), str(folder / "run"), str(folder / "word.png"), epochs=30)
    return folder / "run", stdout.getvalue()


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs a script as a shell does, and returns the lines it printed."""

    def call(name: str, *args: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return call


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_is_short_and_says_how_it_is_called(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    said = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    assert 2 <= len(list(filter(None, said))) <= 4
    assert any(line.strip().startswith(f"python examples/{path.name} ") for line in said)


def test_own_loop(cache: Path, call: Callable[..., list[str]]) -> None:
    *epochs, read = call("own_loop.py", cache)
    form = re.compile(r"epoch (\d+): reading (\S+), seeing (\S+)")
    found = [form.fullmatch(line) for line in epochs]
    numbers = [tuple(map(float, line.groups())) for line in found if line]
    assert [epoch for epoch, _, _ in numbers] == list(range(1, 11))
    (_, first_reading, first_seeing), (_, reading, seeing) = numbers[0], numbers[-1]
    assert reading < first_reading / 5
    assert seeing < first_seeing / 2
    label, _, text = read.partition(" is read as ")
    assert label in LEARNED
    assert text == label


def test_own_encoder(trained: tuple[Path, str]) -> None:
    run, printed = trained
    steps, read = printed.splitlines()
    # 48 words in batches of 16, 30 times.
    assert re.fullmatch(r"90 steps, loss \d+\.\d{3}, then \d\.\d{3}", steps)
    reader = clipocr.load(run)
    assert isinstance(reader.recogniser.encoder.model, ConvNeXt)
    word = reader.read(draw_word(LEARNED[0]))
    assert word.text == LEARNED[0]
    assert read.endswith(f"word.png is read as {word.text}, confidence {word.confidence:.3f}")


def test_evaluate_any_callable(
    trained: tuple[Path, str], data: Path, call: Callable[..., list[str]]
) -> None:
    run, _ = trained
    reader = clipocr.load(run)
    pictures = [Image.open(io.BytesIO(draw_word(word))) for word in LEARNED]

    def percent(seen: Sequence[Image.Image]) -> str:
        right = [word.text for word in reader.read_all(seen)]
        num_right = sum(text == word for text, word in zip(right, LEARNED, strict=True))
        return f"{100 * num_right / len(LEARNED):.2f}"

    lines = call("evaluate_any_callable.py", run, data)
    rows = [cells(line) for line in lines if line.startswith("| drawn")]
    whole, half = percent(pictures), percent([picture.reduce(2) for picture in pictures])
    assert [row[1:3] for row in rows] == [["48", whole], ["48", half], ["48", whole]]
    assert rows[2][3] == half


def test_any_two_callables_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_painted(tmp_path / "data" / "SVT", ["door", "tree", "dog", "cat", "fish"])
    compare = runpy.run_path(str(EXAMPLES / "evaluate_any_callable.py"))["compare"]
    # A picture's level of red is the number of its word.
    first = ["door", "tree", "dog", "bat", "fish"]
    second = ["boor", "free", "log", "cat", "fish"]
    compare(
        lambda pictures: [first[picture.getpixel((0, 0))[0]] for picture in pictures],
        lambda pictures: [second[picture.getpixel((0, 0))[0]] for picture in pictures],
        tmp_path / "data",
    )
    lines = [cells(line) for line in capsys.readouterr().out.splitlines()]
    own, other, both = (line for line in lines if line[0] == "SVT")
    # 4 and 2 of 5. Three words are only the first's and one only the second's, a split that is at
    # least as uneven as 10 of the 16 there are.
    assert (own[2], other[2]) == ("80.00", "40.00")
    assert both[2:7] == ["80.00", "40.00", "-40.00", "3 / 1", "0.6250"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]] or [""]
