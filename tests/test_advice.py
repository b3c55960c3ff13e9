"""What an error advises is typed, and works."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import invoke
from samples import WORDS, write_words

TEACHER = ("--teacher", "ViT-tiny-test/random:0", "--activation", "gelu")
SMALL = ("--device", "cpu", "--workers", 0, "--unit-rows", 32, "--chunk-rows", 8)
STUDENT = ("--student", "tiny", "--device", "cpu", "--epochs", 1, "--batch-size", 16)
THREE = ("--image-taps", "1,2,3", "--text-taps", "1,2,3")


class Place(NamedTuple):
    """Where a case is tried: data, caches and runs of its own."""

    folder: Path
    data: Path
    cache: Path

    def build(self, name: str, *options: object) -> Path:
        out = self.folder / name
        built = invoke(
            "cache", "build", "--data", self.data, "--out", out, *TEACHER, *SMALL, *options
        )
        assert built.exit_code == 0, built.output
        return out


@pytest.fixture
def place(tmp_path: Path, cache_path: Path) -> Place:
    write_words(tmp_path / "data" / "set", WORDS[:16])
    shutil.copytree(cache_path, tmp_path / "words.cache")
    return Place(tmp_path, tmp_path / "data", tmp_path / "words.cache")


def train(place: Place, cache: Path, *options: object) -> tuple[object, ...]:
    return ("train", "--cache", cache, "--out", place.folder / "run", *STUDENT, *options)


def refused(*command: object) -> str:
    result = invoke(*command)
    assert result.exit_code == 1, result.output
    return result.stderr.replace("\n", " ")


def option_in(error: str, name: str) -> tuple[str, str]:
    found = re.search(rf"pass ({name}) (\S+?)[,;.]? ", error)
    assert found, error
    return found[1], found[2]


def command_in(error: str, place: Place) -> list[str]:
    """Return the command that an error names, its capitals filled in."""
    found = re.search(r"clipocr ((?:cache|data|train|eval) .*?)(?:\. |; |, | \.\.\. |$)", error)
    assert found, error
    words = {"ROOT": str(place.data), "FOLDER": str(place.folder / "new.cache")}
    return [words.get(word, word) for word in shlex.split(found[1].removesuffix(" ..."))]


def built_by(error: str, place: Place, *more: object) -> Path:
    """Run the build that an error names, with what it leaves to its reader."""
    command = command_in(error, place)
    out = place.folder / "new.cache"
    rest = () if "--data" in command else ("--data", place.data, "--out", out)
    built = invoke(*command, *rest, *TEACHER, *SMALL, *more)
    assert built.exit_code == 0, built.output
    return out


def succeeds(*command: object) -> None:
    result = invoke(*command)
    assert result.exit_code == 0, result.output


def one_tap(place: Place) -> None:
    """As a cache of one tap was once answered by an option that takes three."""
    cache = place.build("one.cache", "--image-taps", 2, "--text-taps", "1,2,3")
    command = ("--image-taps", "1,2,3", "--text-taps", "1,2,3")
    error = refused(*train(place, cache, *command))
    assert "pass --image-taps" not in error
    succeeds(*train(place, built_by(error, place, "--text-taps", "1,2,3"), *command))


def other_taps(place: Place) -> None:
    error = refused(*train(place, place.cache, "--text-taps", "1,2,3"))
    option = option_in(error, "--image-taps")
    succeeds(*train(place, place.cache, "--text-taps", "1,2,3", *option))


def more_taps_than_stages(place: Place) -> None:
    cache = place.build("four.cache", "--image-taps", "1,2,3,4", "--text-taps", "1,2,3,4")
    error = refused(*train(place, cache, "--image-taps", "1,2,5", "--text-taps", "1,2,3"))
    option = option_in(error, "--image-taps")
    assert option[1] == "1,2,4"
    error = refused(*train(place, cache, *option, "--text-taps", "1,2,5"))
    succeeds(*train(place, cache, *option, *option_in(error, "--text-taps")))


def no_pixels(place: Place) -> None:
    cache = place.build("none.cache", *THREE, "--no-pixels")
    error = refused(*train(place, cache, *THREE))
    succeeds(*train(place, built_by(error, place, *THREE), *THREE))


def other_size(place: Place) -> None:
    cache = place.build("size.cache", *THREE, "--view-size", "64x64")
    error = refused(*train(place, cache, *THREE))
    succeeds(*train(place, built_by(error, place, *THREE), *THREE))


def other_charset(place: Place) -> None:
    error = refused(*train(place, place.cache, *THREE, "--charset", 94))
    succeeds(*command_in(error, place))
    succeeds(*train(place, place.cache, *THREE, "--charset", 94))


def whole_words(place: Place) -> None:
    error = refused(*train(place, place.cache, *THREE, "--tokenizer", "word"))
    succeeds(*command_in(error, place))
    succeeds(*train(place, place.cache, *THREE, "--tokenizer", "word"))


def longer_labels(place: Place) -> None:
    error = refused(*train(place, place.cache, *THREE, "--max-label-length", 30))
    succeeds(*train(place, place.cache, *THREE, *option_in(error, "--max-label-length")))


def more_views(place: Place) -> None:
    error = refused(*train(place, place.cache, *THREE, "--views", 2))
    succeeds(*train(place, place.cache, *THREE, *option_in(error, "--views")))


def weights_that_are_not_kept(place: Place) -> None:
    command = (
        *("train", "--cache", place.cache, "--out", place.folder / "run", "--device", "cpu"),
        *("--method", "clip4str", "--tune", "all", "--epochs", 1, "--batch-size", 16),
        *("--decoder-heads", 2, "--text-frozen-blocks", 1),
    )
    error = refused(*command)
    succeeds(*command_in(error, place))
    succeeds(*command)


def a_run_that_is_there(place: Place) -> None:
    succeeds(*train(place, place.cache, *THREE))
    error = refused(*train(place, place.cache, *THREE))
    succeeds(*command_in(error, place))


def nothing_to_resume(place: Place) -> None:
    (place.folder / "run").mkdir()
    error = refused("train", "--resume", place.folder / "run")
    command = [str(place.cache) if w == "CACHE" else w for w in command_in(error, place)]
    succeeds(*command, *STUDENT, *THREE)


def a_damaged_record(place: Place) -> None:
    succeeds(*train(place, place.cache, *THREE))
    (place.folder / "run/run.json").write_text("{")
    error = refused("train", "--resume", place.folder / "run")
    assert "remove it" in error
    (place.folder / "run/run.json").unlink()
    succeeds(*command_in(error, place))


def a_damaged_cache(place: Place) -> None:
    cache = place.build("damaged.cache", *THREE)
    shard = next(p for p in (cache / "image/view0/block1/c").rglob("0") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-9])
    error = refused(*train(place, cache, *THREE))
    command = [str(cache) if w == "CACHE" else w for w in command_in(error, place)]
    assert command == ["cache", "verify", str(cache), "--repair"]
    assert "then run the cache build command again" in error
    succeeds(*command)
    place.build("damaged.cache", *THREE)
    succeeds(*train(place, cache, *THREE))


def words_that_are_no_lmdb(place: Place) -> None:
    pictures = place.folder / "pictures"
    pictures.mkdir()
    error = refused("cache", "build", "--data", pictures, "--out", place.folder / "c", *TEACHER)
    found = re.search(r"clipocr data import IMAGES (\S+)", error)
    assert found, error
    assert found[1] == str(pictures / "words.lmdb")


CASES: list[Callable[[Place], None]] = [
    *(one_tap, other_taps, more_taps_than_stages, no_pixels, other_size, other_charset),
    *(whole_words, longer_labels, more_views, weights_that_are_not_kept, a_run_that_is_there),
    *(nothing_to_resume, a_damaged_record, a_damaged_cache, words_that_are_no_lmdb),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_an_error_advises_works(case: Callable[[Place], None], place: Place) -> None:
    case(place)
