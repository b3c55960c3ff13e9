"""The contact sheet of words: which are on it, and in which order."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from commands import invoke
from PIL import Image

from clipocr.precompute.data.options import ShowWordsOptions
from clipocr.precompute.data.show_words import show_words
from clipocr.shared.data.word_lmdb import WordLmdbWriter
from clipocr.shared.errors import DataError, UsageError

WORDS = {
    "Exit": (30, 20),
    "exits": (400, 80),
    "door": (9, 60),
    "Fire exit": (8, 8),
    "EXIT": (90, 9),
}
"""Labels, and the sizes of their pictures."""
BAD_PAPER = (0xFB, 0xEA, 0xE9)


def color_of(idx: int) -> tuple[int, int, int]:
    """Return the colour of a sample's picture, which nothing else on the sheet has."""
    return (10 * idx, 200, 7)


@pytest.fixture(scope="module")
def lmdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "five.lmdb"
    with WordLmdbWriter(path) as writer:
        for idx, (label, size) in enumerate(WORDS.items(), start=1):
            buffer = io.BytesIO()
            Image.new("RGB", size, color_of(idx)).save(buffer, "PNG")
            writer.add(buffer.getvalue(), label)
    return path


def shown_on(out: Path) -> list[int]:
    """Return the samples on a sheet, in reading order: a row is as high as three pictures."""
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet)
    places = {}
    for idx in range(1, len(WORDS) + 1):
        found = np.argwhere((pixels == color_of(idx)).all(axis=2))
        if len(found):
            bottom, left = found[:, 0].max(), found[:, 1].min()
            places[int(bottom), int(left)] = idx
    return [idx for _, idx in sorted(places.items())]


def draw(lmdb: Path, out: Path, **options: object) -> list[int]:
    shown = show_words(lmdb, ShowWordsOptions(out=out, **options))
    on_sheet = shown_on(out)
    assert shown.num_shown == len(on_sheet)
    with Image.open(out) as sheet:
        assert sheet.size == shown.size_px
    return on_sheet


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"order": "first"}, [1, 2, 3, 4, 5]),
        ({"order": "first", "words": 2}, [1, 2]),
        ({"order": "smallest"}, [4, 3, 1, 5, 2]),  # 64, 540, 600, 810 and 32,000 pixels.
        ({"order": "smallest", "words": 2}, [4, 3]),
        ({"keys": (5, 2, 4)}, [5, 2, 4]),
        ({"label": "exit", "order": "first"}, [1, 2, 4, 5]),
        ({"label": "EXIT", "exact": True}, [5]),
        ({"label": "exit", "order": "smallest", "words": 1}, [4]),
    ],
)
def test_the_words_that_are_asked_for(
    lmdb: Path, tmp_path: Path, options: dict[str, object], expected: list[int]
) -> None:
    assert draw(lmdb, tmp_path / "a.png", **options) == expected


def test_the_seed_decides_which_are_random(lmdb: Path, tmp_path: Path) -> None:
    drawn = [draw(lmdb, tmp_path / "a.png", words=3, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(some) for some in drawn}) > 2
    assert set().union(*drawn) == {1, 2, 3, 4, 5}


def test_pictures_keep_their_proportions_and_fit(lmdb: Path, tmp_path: Path) -> None:
    draw(lmdb, tmp_path / "a.png", order="first")
    with Image.open(tmp_path / "a.png") as sheet:
        pixels = np.asarray(sheet)
    # Enlarged to three times their size at most, and to 176x64.
    expected = {1: (90, 60), 2: (176, 35), 3: (10, 64), 4: (24, 24), 5: (176, 18)}
    for idx, (width, height) in expected.items():
        assert (pixels == color_of(idx)).all(axis=2).sum() == width * height, idx


def test_what_is_no_picture_says_why_and_is_the_smallest(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), color_of(1)).save(buffer, "PNG")
    with WordLmdbWriter(tmp_path / "bad.lmdb") as writer:
        writer.add_all([(buffer.getvalue(), "x\ny" * 80), (b"junk", "東京")])
    out = tmp_path / "a.png"
    show_words(tmp_path / "bad.lmdb", ShowWordsOptions(out=out, order="smallest"))
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet)
    bad = np.argwhere((pixels == BAD_PAPER).all(axis=2))
    good = np.argwhere((pixels == color_of(1)).all(axis=2))
    assert len(bad) > 10_000
    assert bad[:, 1].max() < good[:, 1].min()


def test_the_command_says_what_it_wrote_and_what_is_not_there(lmdb: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    result = invoke("data", "show", lmdb, "--out", out, "--label", "exit", "--words", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"Wrote {out}: 3 of 4 words, 624x208 pixels.\n"
    invoke("data", "show", lmdb, "--out", out, "--keys", "image-000000005,2")
    assert shown_on(out) == [5, 2]
    for args, said in (
        (["--label", "way"], f"Error: {lmdb} has no word with 'way' in the label\n"),
        (["--label", "exit", "--exact"], f"Error: {lmdb} has no word labelled 'exit'\n"),
        (["--keys", "1,6"], f"Error: {lmdb} has no sample 6, only 1 to 5\n"),
        (["--keys", "x"], "Error: key 'x': expected a number, or a key such as image-0000000"),
        (["--keys", "0"], "Error: keys is (0,), expected a list, each a whole number from 1"),
        (["--keys", "1", "--label", "x"], "Error: --keys and --label both say which words; "),
        (["--exact"], "Error: --exact says how --label is compared; "),
    ):
        refused = invoke("data", "show", lmdb, "--out", out, *args)
        assert refused.exit_code == 1
        assert refused.stderr.startswith(said)


def test_another_font_may_be_given(lmdb: Path, tmp_path: Path) -> None:
    mono = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSansMono.ttf")
    sheets = []
    for font in (None, mono):
        show_words(lmdb, ShowWordsOptions(out=tmp_path / "a.png", order="first", font=font))
        sheets.append((tmp_path / "a.png").read_bytes())
    assert sheets[0] != sheets[1]
    with pytest.raises(DataError, match=r"data\.mdb is not a font"):
        show_words(lmdb, ShowWordsOptions(out=tmp_path / "b.png", font=lmdb / "data.mdb"))
    assert not (tmp_path / "b.png").exists()


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="words is 0"):
        ShowWordsOptions(out=tmp_path / "a.png", words=0)
    with pytest.raises(DataError, match=r"holds no data\.mdb"):
        show_words(tmp_path, ShowWordsOptions(out=tmp_path / "a.png"))
