"""A small world for tests: a tiny CLIP, drawn words, and the build of a small cache of them.

The tiny teacher is open_clip's own CLIP class with small numbers: four blocks, 224-pixel images in
16-pixel patches, causal text of 77 positions. Only sizes differ from ViT-B/16, so what holds for it
holds for the real one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import open_clip
from PIL import Image, ImageDraw, ImageFont

from clipocr.precompute.builder.config import BuildConfig
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.data.word_lmdb import WordLmdbWriter

TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 224, "layers": 4, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 4},
}
TINY_TEACHER = "ViT-tiny-test/random:0"
EQUAL_TEACHER = "ViT-equal-test/random:0"
"""The same with text tokens as wide as the joint space, as those of ViT-B/16 are."""
DEEP_TEACHER = "ViT-nine-test/random:0"
"""The same with nine blocks in each encoder, which the taps of every default need."""
TINY_CLI = Path(__file__).with_name("tiny_cli.py")
"""The command clipocr as a program that knows the tiny teacher."""

WORDS = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar "
    "papa quebec romeo sierra tango uniform victor whiskey xray yankee zulu One TWO 333 four-4"
).split()


def register_tiny_clip(folder: Path) -> None:
    """Make the tiny teacher known to open_clip, by files in `folder`; with QuickGELU, too."""
    (folder / "ViT-tiny-test.json").write_text(json.dumps(TINY_CLIP))
    equal = {**TINY_CLIP, "embed_dim": 32}
    (folder / "ViT-equal-test.json").write_text(json.dumps(equal))
    nine = {part: {**TINY_CLIP[part], "layers": 9} for part in ("vision_cfg", "text_cfg")}
    (folder / "ViT-nine-test.json").write_text(json.dumps({**TINY_CLIP, **nine}))
    quick = folder / "ViT-tiny-test-quickgelu.json"
    quick.write_text(json.dumps({**TINY_CLIP, "quick_gelu": True}))
    open_clip.add_model_config(folder)


def draw_word(word: str, mode: str = "RGB") -> bytes:
    """Return a PNG of a word, grey levels depending on it."""
    image = Image.new("RGB", (20 + 14 * len(word), 28), (200, 210, 220))
    font = ImageFont.load_default(20)
    ImageDraw.Draw(image).text((8, 2), word, font=font, fill=(len(word) * 9, 40, 60))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def files_of(path: Path) -> dict[str, bytes]:
    """Return every file below a folder, by its name from there."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def write_words(path: Path, words: Sequence[str], images: dict[int, bytes] | None = None) -> Path:
    """Write an LMDB of drawn words; `images` replaces the picture of some indexes (from 1)."""
    with WordLmdbWriter(path) as writer:
        for idx, word in enumerate(words, start=1):
            writer.add((images or {}).get(idx, draw_word(word)), word)
    return path


def deep_build(data_root: Path, out: Path) -> BuildConfig:
    """Return a build by the teacher of nine blocks, with the taps of every default."""
    taps = {"image_taps": (3, 6, 9), "text_taps": (3, 6, 9)}
    return tiny_build(data_root, out, teacher=DEEP_TEACHER, **taps)


def tiny_build(data_root: Path, out: Path, **changes: object) -> BuildConfig:
    """Return a build of the small data set: 73 rows in three units of four chunks.

    Features are stored exactly, for tests to compare.
    """
    settings: dict[str, object] = {
        "data": (data_root,),
        "out": out,
        "teacher": TINY_TEACHER,
        "image_taps": (1, 2, 3),
        "text_taps": (1, 2, 3),
        "codec": "fp16",
        "unit_rows": 32,
        "chunk_rows": 8,
        "device": "cpu",
    }
    settings |= changes
    codec = tuple(map(Codec.parse, str(settings["codec"]).split(",")))
    return BuildConfig(**(settings | {"codec": codec}))
