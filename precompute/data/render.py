"""Synthetic words in MJSynth's spirit, for trying things and for training without a download.

Sample ``idx`` depends on the options, the words, the fonts and ``SeedSequence([seed, idx])`` alone:
the LMDB is the same to the byte whatever the number of processes. Another version of Pillow,
FreeType or libjpeg may round differently.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont  # a hard dependency of matplotlib

from ...shared.ahead import map_on_processes
from ...shared.data.folders import files_below
from ...shared.data.word_lmdb import WordLmdbWriter
from ...shared.errors import DataError
from ...shared.progress import progress_bar
from .draw_word import STYLES, draw_word, open_font
from .options import DrawingOptions

_MAX_WORD_LENGTH = 64
_CHUNK_SAMPLES = 64
_MIN_HEIGHT_PX = 31


@dataclass(frozen=True, kw_only=True)
class Font:
    """A font file and the characters it has glyphs for."""

    path: Path
    characters: frozenset[str]


def load_fonts(folder: Path | None, on_problem: Callable[[str], None]) -> list[Font]:
    """Return the usable fonts at or below `folder`; `on_problem` is told why each other is not.

    Without a folder: the text fonts that matplotlib brings along, so that rendering works on a
    machine without fonts.
    """
    if folder is None:
        bundled = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        # The "Display" files hold a few glyphs each; cm* and STIXSiz* are maths, not text.
        paths = [p for p in bundled.glob("DejaVu*.ttf") if "Display" not in p.name]
        paths += bundled.glob("STIXGeneral*.ttf")
    else:
        paths = files_below(folder, (".ttf", ".otf"))
    fonts = []
    for path in sorted(paths):
        try:
            fonts.append(Font(path=path, characters=_drawable_characters(path)))
        except Exception as e:
            # fontTools and FreeType raise whatever a damaged table leads them into.
            on_problem(f"{path}: {str(e) or type(e).__name__}")
    if not fonts:
        raise DataError(f"no usable .ttf or .otf font at or below {folder or bundled}")
    return fonts


def _drawable_characters(path: Path) -> frozenset[str]:
    # Opened here, since TTFont leaves a file open if it cannot read it.
    with path.open("rb") as file, TTFont(file, lazy=True) as tables:
        characters = frozenset(map(chr, tables.getBestCmap() or ()))
    letters = sorted(c for c in characters if c.isalnum())
    if not letters:
        raise DataError("no letters or digits")
    if open_font(path, 16).getmask(letters[0]).getbbox() is None:
        raise DataError("draws letters as nothing")
    return characters


def load_words(path: Path) -> list[str]:
    """Read the distinct words of a UTF-8 file, one a line; blank lines hold none."""
    try:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} is not a readable UTF-8 file of words: {e}") from e
    lines = text.split("\n")
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
) -> None:
    """Write `count` samples into the LMDB `out`, using each word about equally often."""
    fonts = _fonts_for(words, fonts, drawing.case)
    order = _word_order(words, count, drawing.seed)
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
    chunk: list[tuple[int, str]], *, fonts: Sequence[Font], drawing: DrawingOptions
) -> list[tuple[bytes, str]]:
    return [render_sample(idx, word, fonts=fonts, drawing=drawing) for idx, word in chunk]


def render_sample(
    sample_idx: int, word: str, *, fonts: Sequence[Font], drawing: DrawingOptions
) -> tuple[bytes, str]:
    """Return (JPEG, label) of one sample; at least one of `fonts` must be able to draw `word`."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([drawing.seed, sample_idx])))
    forms = _cased(word, drawing.case)
    label = forms[rng.integers(len(forms))]
    shuffled = (fonts[font_idx] for font_idx in rng.permutation(len(fonts)))
    font = next(font for font in shuffled if font.characters.issuperset(label))
    height_px = int(rng.integers(_MIN_HEIGHT_PX, drawing.max_height_px + 1))
    style = STYLES[drawing.style]
    return draw_word(label, font.path, height_px=height_px, style=style, rng=rng), label
