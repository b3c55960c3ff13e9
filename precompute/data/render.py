"""Synthetic words, for trying things and for training without a download.

Sample ``idx`` depends on the options, the words, the fonts, the background pictures and
``SeedSequence([seed, idx])`` alone: the LMDB is the same to the byte whatever the number of
processes. Another version of Pillow, FreeType or libjpeg may round differently.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from string import ascii_lowercase

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont  # a hard dependency of matplotlib
from matplotlib.font_manager import findSystemFonts
from PIL.ImageFont import FreeTypeFont

from ...shared.ahead import map_on_processes
from ...shared.data.folders import files_below
from ...shared.data.text_file import lines_of
from ...shared.data.word_lmdb import WordLmdbWriter
from ...shared.errors import DataError
from ...shared.progress import progress_bar
from .backgrounds import background_of, open_background
from .draw_scene import draw_scene
from .draw_word import STYLES, draw_word, open_font
from .options import DrawingOptions

_MAX_WORD_LENGTH = 64
_CHUNK_SAMPLES = 64
_FONT_SUFFIXES = (".ttf", ".otf")
_PROBE_PX = 32
_PICTORIAL_PANOSE, _SYMBOLIC_CLASS = 5, 12
"""What the table OS/2 of a font with pictures for letters says."""


@dataclass(frozen=True, kw_only=True)
class Font:
    """A font file and the characters it draws."""

    path: Path
    characters: frozenset[str]
    is_slanted: bool = False


def load_fonts(
    folder: Path | None, on_problem: Callable[[str], None], *, of_system: bool = False
) -> list[Font]:
    """Return the usable fonts at or below `folder`; `on_problem` is told why each other is not.

    Without a folder: the text fonts that matplotlib brings along, so that rendering works on a
    machine without fonts, and with `of_system` those that are installed here too. Of these nobody
    is told which are no text fonts.
    """
    bundled = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    if folder is not None:
        paths = sorted(files_below(folder, _FONT_SUFFIXES))
    else:
        # The "Display" files hold a few glyphs each; cm* and STIXSiz* are maths, not text.
        paths = [p for p in bundled.glob("DejaVu*.ttf") if "Display" not in p.name]
        paths = sorted((*paths, *bundled.glob("STIXGeneral*.ttf")))
    if folder is None and of_system:
        installed = [p for p in map(Path, findSystemFonts()) if p.suffix.lower() in _FONT_SUFFIXES]
        # By name, because installed fonts lie elsewhere on another machine, and DejaVu is twice.
        by_name = {path.name: path for path in (*sorted(installed), *paths)}
        paths = [by_name[name] for name in sorted(by_name)]
    fonts = []
    for path in paths:
        try:
            fonts.append(_read_font(path))
        except Exception as e:
            # fontTools and FreeType raise whatever a damaged table leads them into.
            if folder is not None:
                on_problem(f"{path}: {str(e) or type(e).__name__}")
    if not fonts:
        raise DataError(f"no usable .ttf or .otf font at or below {folder or bundled}")
    return fonts


def _read_font(path: Path) -> Font:
    # Opened here, since TTFont leaves a file open if it cannot read it.
    with path.open("rb") as file, TTFont(file, lazy=True) as tables:
        characters = frozenset(map(chr, tables.getBestCmap() or ()))
        is_slanted = "post" in tables and tables["post"].italicAngle != 0
        if "OS/2" in tables:
            about = tables["OS/2"]
            is_pictorial = about.panose.bFamilyType == _PICTORIAL_PANOSE
            if is_pictorial or about.sFamilyClass >> 8 == _SYMBOLIC_CLASS:
                raise DataError("draws symbols for letters")
    letters = sorted(c for c in characters if c.isalnum())
    if not letters:
        raise DataError("no letters or digits")
    face = open_font(path, _PROBE_PX)
    if face.getmask(letters[0]).getbbox() is None:
        raise DataError("draws letters as nothing")
    # A word in capitals whose label is in small letters would be a wrong label.
    if _has_capitals_only(face, characters):
        characters = frozenset(c for c in characters if not c.islower())
    return Font(path=path, characters=characters, is_slanted=is_slanted)


def _has_capitals_only(face: FreeTypeFont, characters: frozenset[str]) -> bool:
    """Whether a font draws most of a to z as their capitals, to the pixel."""
    pairs = [(c, c.upper()) for c in ascii_lowercase if characters.issuperset((c, c.upper()))]
    num_same = 0
    for pair in pairs:
        small, capital = map(face.getmask, pair)
        num_same += small.size == capital.size and bytes(small) == bytes(capital)
    return 2 * num_same > len(pairs)


def load_words(path: Path) -> list[str]:
    """Read the distinct words of a UTF-8 file, one a line; blank lines hold none."""
    try:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} is not a readable UTF-8 file of words: {e}") from e
    lines = lines_of(text)
    for line_idx, line in enumerate(lines, start=1):
        if len(line.strip()) > _MAX_WORD_LENGTH:
            raise DataError(
                f"{path}, line {line_idx}: {len(line.strip())} characters, expected one word "
                f"a line, {_MAX_WORD_LENGTH} characters at most"
            )
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise DataError(f"{path} holds no words; expected one a line")
    return words


def render_words(
    words: Sequence[str],
    out: Path,
    *,
    count: int,
    fonts: Sequence[Font],
    drawing: DrawingOptions,
    backgrounds: Sequence[Path] = (),
) -> None:
    """Write `count` samples into the LMDB `out`, using each word about equally often."""
    fonts = _fonts_for(words, fonts, drawing.case)
    order = (
        (idx, word, background_of(idx, backgrounds))
        for idx, word in _word_order(words, count, drawing.seed)
    )
    chunks = iter(lambda: list(islice(order, _CHUNK_SAMPLES)), [])
    render = partial(_render_chunk, fonts=fonts, drawing=drawing)
    with (
        WordLmdbWriter(out, overwrite=drawing.overwrite) as writer,
        progress_bar(total=count, unit="image", desc="render") as progress,
    ):
        for chunk in map_on_processes(render, chunks, drawing.num_processes):
            writer.add_all(chunk)
            progress.update(len(chunk))


def _fonts_for(words: Sequence[str], fonts: Sequence[Font], case: str) -> list[Font]:
    """Narrow `fonts` to the characters that occur, once it is sure that every word has a font."""
    forms = {form for word in words for form in _cased(word, case)}
    alphabet = frozenset().union(*forms)
    narrowed = [replace(font, characters=font.characters & alphabet) for font in fonts]
    for form in sorted(forms):
        if not any(font.characters.issuperset(form) for font in narrowed):
            widest = max(narrowed, key=lambda font: len(font.characters.intersection(form)))
            missing = "".join(sorted(set(form) - widest.characters))
            raise DataError(
                f"no font can draw the word {form!r}: {widest.path.name} comes closest and lacks "
                f"{missing!r}; pass --fonts DIR with a font for it, or drop the word"
            )
    return narrowed


def _cased(word: str, case: str) -> tuple[str, ...]:
    forms = {
        "lower": (word.lower(),),
        "upper": (word.upper(),),
        "as-is": (word,),
        "mixed": (word.lower(), word[:1].upper() + word[1:].lower(), word.upper()),
    }
    return forms[case]


def _word_order(words: Sequence[str], count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Yield (sample index, word): all words in random order, then all in another, and so on."""
    for first_idx in range(0, count, len(words)):
        order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(first_idx,)))
        for offset, word_idx in enumerate(order.permutation(len(words))[: count - first_idx]):
            yield first_idx + offset, words[word_idx]


def _render_chunk(
    chunk: list[tuple[int, str, Path | None]], *, fonts: Sequence[Font], drawing: DrawingOptions
) -> list[tuple[bytes, str]]:
    return [
        render_sample(idx, word, fonts=fonts, drawing=drawing, background=background)
        for idx, word, background in chunk
    ]


def render_sample(
    sample_idx: int,
    word: str,
    *,
    fonts: Sequence[Font],
    drawing: DrawingOptions,
    background: Path | None = None,
) -> tuple[bytes, str]:
    """Return (JPEG, label) of one sample; at least one of `fonts` must be able to draw `word`.

    `background` is a picture for the style ``scene``, which paints one if there is none.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([drawing.seed, sample_idx])))
    style = STYLES[drawing.style]
    forms = _cased(word, drawing.case)
    label = forms[rng.integers(len(forms))]
    shuffled = (fonts[font_idx] for font_idx in rng.permutation(len(fonts)))
    fitting = (font for font in shuffled if font.characters.issuperset(label))
    font = next(fitting)
    if style.upright_rate and rng.random() < style.upright_rate and font.is_slanted:
        font = next((other for other in fitting if not other.is_slanted), font)
    lowest, highest = style.height_px
    highest = drawing.max_height_px or highest
    if drawing.style == "scene":
        # As many from 16 to 32 as from 32 to 64: half of IIIT5K's crops are 23 to 50 high.
        height_px = round(lowest * (highest / lowest) ** rng.random())
        picture = open_background(background) if background else None
        image = draw_scene(
            label, font.path, height_px=height_px, style=style, picture=picture, rng=rng
        )
    else:
        height_px = int(rng.integers(lowest, highest + 1))
        image = draw_word(label, font.path, height_px=height_px, style=style, rng=rng)
    return image, label
