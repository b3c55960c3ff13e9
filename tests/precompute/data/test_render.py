"""Rendering: the same bytes from the same options, every word in its turn, only drawable words."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from clipocr.precompute.data import render
from clipocr.precompute.data.backgrounds import SAMPLES_PER_PICTURE, load_backgrounds
from clipocr.precompute.data.draw_scene import draw_scene
from clipocr.precompute.data.draw_word import STYLES, draw_word
from clipocr.precompute.data.options import DrawingOptions
from clipocr.precompute.data.render import (
    Font,
    load_fonts,
    load_words,
    render_sample,
    render_words,
)
from clipocr.shared.data.word_lmdb import WordLmdb
from clipocr.shared.errors import DataError, UsageError

WORDS = ["apple", "Birne", "CHERRY", "42nd", "fig"]
FONTS = load_fonts(None, print)


def square_font(path, characters: str, *, panose_family: int = 0, family_class: int = 0) -> None:
    """Write a font whose glyphs are all the same square."""
    pen = TTGlyphPen(None)
    pen.moveTo((50, 0))
    for point in ((50, 600), (550, 600), (550, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"uni{ord(c):04X}" for c in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"uni{ord(c):04X}" for c in characters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Square", "styleName": "Regular"})
    builder.setupOS2(sFamilyClass=family_class << 8)
    builder.font["OS/2"].panose.bFamilyType = panose_family
    builder.setupPost()
    builder.save(path)


def rendered(tmp_path, count: int, words=WORDS, jobs: int = 1, **drawing) -> list:
    out = tmp_path / "out.lmdb"
    drawing = DrawingOptions(**drawing, jobs=jobs, overwrite=True)
    render_words(words, out, count=count, fonts=FONTS, drawing=drawing)
    return [(image, label) for _, image, label in WordLmdb(out)]


def test_bytes_depend_on_the_seed_and_not_on_the_number_of_processes(tmp_path) -> None:
    for style in ("mjsynth", "scene"):
        one = rendered(tmp_path, 150, seed=3, style=style)
        other = rendered(tmp_path, 150, seed=4, style=style)
        assert not {image for image, _ in one} & {image for image, _ in other}
    assert rendered(tmp_path, 150, seed=3, style="scene", jobs=2) == one


def test_a_sample_does_not_depend_on_how_many_follow(tmp_path) -> None:
    assert rendered(tmp_path, 12)[:5] == rendered(tmp_path, 5)


def test_each_word_is_used_equally_often_in_shuffled_order(tmp_path) -> None:
    words = [f"w{i}" for i in range(20)]
    labels = [label for _, label in rendered(tmp_path, 50, words, case="as-is", style="plain")]
    assert sorted(labels[:20]) == sorted(labels[20:40]) == sorted(words)
    assert labels[:20] != words
    assert labels[20:40] != labels[:20]
    assert max(Counter(labels[40:]).values()) == 1


def test_the_label_is_what_is_drawn(tmp_path) -> None:
    lower = rendered(tmp_path, 5, case="lower")
    assert sorted(label for _, label in lower) == ["42nd", "apple", "birne", "cherry", "fig"]
    upper = rendered(tmp_path, 5, case="upper")
    assert sorted(label for _, label in upper) == ["42ND", "APPLE", "BIRNE", "CHERRY", "FIG"]


def test_mixed_case_draws_three_forms_about_equally_often() -> None:
    font = [Font(path=FONTS[0].path, characters=frozenset("fFiIgG"))]
    drawing = DrawingOptions(style="plain")
    drawn = Counter(render_sample(i, "fIg", fonts=font, drawing=drawing)[1] for i in range(150))
    assert set(drawn) == {"fig", "Fig", "FIG"}
    assert min(drawn.values()) > 30  # 50 expected, standard deviation 5.8


@pytest.mark.parametrize("style", ["mjsynth", "color", "plain"])
def test_crops_are_rgb_or_grey_jpegs_of_the_wanted_height(tmp_path, style: str) -> None:
    samples = rendered(tmp_path, 25, style=style, max_height_px=35)
    crops = [Image.open(io.BytesIO(image)) for image, _ in samples]
    assert {crop.height for crop in crops} == {31, 32, 33, 34, 35}
    assert {crop.mode for crop in crops} == {"RGB" if style == "color" else "L"}
    assert {crop.format for crop in crops} == {"JPEG"}


def test_longer_words_make_wider_crops() -> None:
    def width(word: str) -> int:
        rng = np.random.default_rng(0)
        jpeg = draw_word(word, FONTS[0].path, height_px=31, style=STYLES["plain"], rng=rng)
        return Image.open(io.BytesIO(jpeg)).width

    assert width("nnnn") < width("nnnnnnnn") < width("n" * 16)


def test_plain_is_dark_ink_on_light_paper(tmp_path) -> None:
    for image, _ in rendered(tmp_path, 10, style="plain"):
        grey = np.asarray(Image.open(io.BytesIO(image)))
        assert np.median([grey[0], grey[-1]]) > 180
        assert np.percentile(grey, 5) < 90


def test_default_height_and_contrast_are_those_of_mjsynth(tmp_path) -> None:
    greys = [np.asarray(Image.open(io.BytesIO(image))) for image, _ in rendered(tmp_path, 200)]
    assert {grey.shape[0] for grey in greys} == {31}
    contrasts = [np.percentile(grey, 95) - np.percentile(grey, 5) for grey in greys]
    # Measured on 1,695 genuine crops: median 94, quartiles 62 and 142.
    assert 80 < np.median(contrasts) < 125
    assert min(contrasts) > 15


@pytest.mark.parametrize("word", ["i", ".", "|", "W" * 60, "g_j", "fi ne"])
def test_odd_shapes_render_in_every_style(word: str) -> None:
    for style in STYLES:
        drawing = DrawingOptions(style=style, case="as-is", seed=1)
        for idx in range(5):
            image, label = render_sample(idx, word, fonts=FONTS, drawing=drawing)
            assert label == word
            crop = Image.open(io.BytesIO(image))
            lowest, _ = STYLES[style].height_px
            assert crop.height >= lowest
            assert crop.width >= crop.height // 2


def test_bundled_fonts_are_text_fonts() -> None:
    names = {font.path.stem for font in FONTS}
    assert {"DejaVuSans", "DejaVuSerif-Italic", "DejaVuSansMono-Bold", "STIXGeneral"} <= names
    assert not [name for name in names if name.startswith(("cm", "STIXSiz", "STIXNonUni"))]
    assert all(font.characters.issuperset("azAZ09!'") for font in FONTS)


def test_unusable_fonts_are_told_apart(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    square_font(tmp_path / "deep" / "good.TTF", "abc")
    square_font(tmp_path / "symbols.ttf", "★☆")
    (tmp_path / "broken.otf").write_bytes(b"not a font")
    (tmp_path / "readme.txt").write_text("not looked at")
    problems: list[str] = []
    fonts = load_fonts(tmp_path, problems.append)
    assert fonts == [Font(path=tmp_path / "deep" / "good.TTF", characters=frozenset("abc"))]
    broken, symbols = problems
    assert broken.startswith(f"{tmp_path / 'broken.otf'}: ")
    assert symbols == f"{tmp_path / 'symbols.ttf'}: no letters or digits"
    (tmp_path / "deep" / "good.TTF").unlink()
    with pytest.raises(DataError, match="no usable"):
        load_fonts(tmp_path, problems.append)


def test_fonts_of_symbols_are_left_out(tmp_path) -> None:
    square_font(tmp_path / "pictorial.ttf", "abc", panose_family=5)
    square_font(tmp_path / "symbolic.ttf", "abc", family_class=12)
    square_font(tmp_path / "text.ttf", "abc", panose_family=2, family_class=8)
    problems: list[str] = []
    fonts = load_fonts(tmp_path, problems.append)
    assert [font.path.name for font in fonts] == ["text.ttf"]
    assert problems == [
        f"{tmp_path / name}.ttf: draws symbols for letters" for name in ("pictorial", "symbolic")
    ]


def test_a_font_of_capitals_draws_no_small_letters(tmp_path) -> None:
    square_font(tmp_path / "capitals.ttf", "abcABC12")
    (font,) = load_fonts(tmp_path, print)
    assert font.characters == frozenset("ABC12")


def test_fonts_of_the_system_are_taken_beside_the_bundled_ones(tmp_path, monkeypatch) -> None:
    square_font(tmp_path / "abc.ttf", "abc")
    square_font(tmp_path / "symbols.ttf", "★☆")
    found = [*map(str, tmp_path.iterdir()), "/fonts/collection.ttc", str(FONTS[0].path)]
    monkeypatch.setattr(render, "findSystemFonts", lambda: found)
    problems: list[str] = []
    fonts = load_fonts(None, problems.append, of_system=True)
    names = [font.path.name for font in fonts]
    assert names == sorted(["abc.ttf", *(font.path.name for font in FONTS)])
    assert not problems


def test_slanted_fonts_are_told_apart() -> None:
    for font in FONTS:
        assert font.is_slanted == any(part in font.path.stem for part in ("Ita", "Oblique"))


def test_a_font_is_used_only_for_words_it_has_glyphs_for(tmp_path) -> None:
    square_font(tmp_path / "abc.ttf", "abc")
    square_font(tmp_path / "xyz.ttf", "xyz")
    fonts = load_fonts(tmp_path, print)
    drawing = DrawingOptions(case="lower")
    drawn = {}
    for word in ("abc", "xyz"):
        only = [font for font in fonts if font.characters.issuperset(word)]
        assert len(only) == 1
        drawn[word] = render_sample(0, word, fonts=fonts, drawing=drawing)
    assert [label for _, label in drawn.values()] == ["abc", "xyz"]
    with pytest.raises(DataError, match=r"no font can draw the word 'cax': abc.ttf .* lacks 'x'"):
        render_words(["abc", "cax"], tmp_path / "out", count=1, fonts=fonts, drawing=drawing)
    assert not (tmp_path / "out").exists()


def test_every_case_of_a_word_must_be_drawable(tmp_path) -> None:
    square_font(tmp_path / "abc.ttf", "abc")
    fonts = load_fonts(tmp_path, print)
    with pytest.raises(DataError, match="no font can draw the word 'ABC'"):
        render_words(["abc"], tmp_path / "out", count=1, fonts=fonts, drawing=DrawingOptions())


def test_word_files_hold_one_word_a_line(tmp_path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffeins\r\n\r\n  zwei \n\t\neins\ndrei".encode())
    assert load_words(path) == ["eins", "zwei", "drei"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no words"),
        (b" \n\t\n", "holds no words"),
        (b"\xff\xfea\0", "not a readable UTF-8 file"),
        (b"ok\n" + b"x" * 65, "line 2: 65 characters, expected one word a line"),
    ],
)
def test_files_that_are_no_word_lists_are_refused(tmp_path, content, message: str) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_words(tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"style": "fancy"}, "expected one of mjsynth, color, plain"),
        ({"case": "title"}, "expected one of mixed, lower, upper, as-is"),
        (
            {"backgrounds": Path("here")},
            "style mjsynth draws no pictures behind words; pass --style",
        ),
        ({"max_height_px": 30}, "max_height_px is 30, expected a whole number from 31 to 128"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DrawingOptions(**options)


def scenes(count: int, **drawing) -> list[np.ndarray]:
    """Return crops in the style ``scene``, of words of this page."""
    options = DrawingOptions(style="scene", **drawing)
    samples = [render_sample(i, WORDS[i % 5], fonts=FONTS, drawing=options) for i in range(count)]
    return [np.asarray(Image.open(io.BytesIO(image))) for image, _ in samples]


def test_scenes_are_of_every_height_and_as_many_low_as_high() -> None:
    heights = [crop.shape[0] for crop in scenes(300)]
    assert 16 <= min(heights) < 18 < 76 < max(heights) <= 80
    assert 33 < np.median(heights) < 39  # sqrt(16 * 80) is 35.8; standard deviation 1.7
    assert 38 <= max(crop.shape[0] for crop in scenes(100, max_height_px=40)) <= 40


def test_scenes_are_in_colour_and_keep_a_contrast() -> None:
    crops = [crop.astype(float) for crop in scenes(300)]
    assert {crop.shape[2] for crop in crops} == {3}
    is_colourful = [np.ptp(crop, axis=2).mean() > 15 for crop in crops]
    assert 0.4 < np.mean(is_colourful) < 0.9
    contrasts = [np.ptp(np.percentile(crop.mean(2), [5, 95])) for crop in crops]
    # Measured on 2,000 words of IIIT5K: median 161; on 4,468 of ICDAR 2015: 93, 5 % below 48.
    assert min(contrasts) > 25
    assert 93 < np.median(contrasts) < 161


def test_what_hides_a_word_leaves_most_of_it() -> None:
    bare = replace(STYLES["plain"], channels=3, margin=0.1)

    def drawn(word: str, seed: int, rate: float) -> np.ndarray:
        jpeg = draw_scene(
            word,
            FONTS[0].path,
            height_px=40,
            style=replace(bare, occlusion_rate=rate),
            picture=None,
            rng=np.random.default_rng(seed),
        )
        return np.asarray(Image.open(io.BytesIO(jpeg)), float)

    hidden = []
    for seed in range(40):
        clear, covered = (drawn("restaurant", seed, rate) for rate in (0.0, 1.0))
        hidden.append((np.abs(clear - covered).max(axis=2) > 40).mean())
    assert max(hidden) < 0.2
    assert np.mean(hidden) > 0.005


def test_pictures_lie_behind_the_words(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "deep" / "red.png")
    Image.new("RGB", (300, 900), (30, 30, 200)).save(tmp_path / "blue.PNG")
    (tmp_path / "broken.jpg").write_bytes(b"none")
    problems: list[str] = []
    pictures = load_backgrounds(tmp_path, 0, problems.append)
    assert problems == [f"{tmp_path / 'broken.jpg'}: not an image"]
    drawing = DrawingOptions(style="scene", backgrounds=tmp_path, jobs=1)
    out, count = tmp_path / "out", 2 * SAMPLES_PER_PICTURE
    render_words(WORDS, out, count=count, fonts=FONTS, drawing=drawing, backgrounds=pictures)
    behind = []
    for _, image, _ in WordLmdb(out):
        crop = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), float)
        corners = crop[[0, 0, -1, -1], [0, -1, 0, -1]]
        red, _, blue = np.median(corners, axis=0)
        behind.append("red" if red > blue + 20 else "blue" if blue > red + 20 else "another")
    for picture, first in zip(pictures, (0, SAMPLES_PER_PICTURE), strict=True):
        share = Counter(behind[first:][:SAMPLES_PER_PICTURE])[picture.stem]
        # Some signs end within the crop, some crops are grey.
        assert share > 0.75 * SAMPLES_PER_PICTURE


def test_folders_without_a_picture_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=f"no usable picture at or below {tmp_path}"):
        load_backgrounds(tmp_path, 0, print)
