"""Draw what a cache stores and what is trained from it: the figure at the head of the README.

Views, labels and features are those of a real cache: each array is drawn by its first three
principal components. Written twice, for light and for dark pages:

    printf 'coffee\\nmarket\\nexit\\nbakery\\n' > words.txt
    clipocr data render signs/words.lmdb --words words.txt --count 40 --style scene --seed 3
    clipocr cache build --data signs --out signs.cache --teacher ViT-B-16/random:0 --seed 1
    python benchmarks/overview.py signs.cache docs/pictures

Which letters are seen depends on the fonts that are installed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import clipocr
from clipocr.precompute.inspect.show import color_tokens

BLOCKS = ("block3", "block6", "block9")
NUM_WORDS = 3


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    paper: str
    ink: str
    quiet: str
    frozen: str
    trained: str
    cache: str


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#59636e", "#dbe9fb", "#d9f2df", "#f4f1e6"),
    "dark": Theme("#0d1117", "#e6edf3", "#9198a1", "#1b3557", "#17402a", "#2b2718"),
}


def main(cache: Path, out: Path) -> None:
    words = clipocr.open_cache(cache)
    chosen: dict[str, int] = {}
    for index, word in enumerate(words):
        chosen.setdefault(word.adapted_label, index)
    shown = [words[index] for index in list(chosen.values())[:NUM_WORDS]]
    # Without the class token: the patches are a grid of 2 x 8.
    patches = {
        name: color_tokens(np.stack([word.images[name][1:] for word in shown]))[0]
        for name in BLOCKS
    }
    length = max(len(word.adapted_label) for word in shown)
    texts = color_tokens(np.stack([word.text["block9"][: length + 1] for word in shown]))[0]
    for name, theme in THEMES.items():
        figure = Figure(figsize=(11, 4.2), facecolor=theme.paper)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 110), ylim=(0, 42))
        axes.axis("off")
        pen = Pen(axes, theme)
        draw(pen, shown, patches, texts)
        figure.savefig(out / f"overview-{name}.png", dpi=150, facecolor=theme.paper)


class Pen:
    """Draws boxes, arrows, text and pictures in a page's colours; x to the right, y upwards."""

    def __init__(self, axes, theme: Theme) -> None:
        self.axes, self.theme = axes, theme

    def box(self, x: float, y: float, width: float, height: float, color: str, text: str = ""):
        style = "round,pad=0,rounding_size=0.8"
        patch = FancyBboxPatch((x, y), width, height, style, fc=color, ec=self.theme.quiet, lw=0.8)
        self.axes.add_patch(patch)
        self.text(x + width / 2, y + height / 2, text, ha="center", va="center")

    def arrow(self, start, end, *, text: str = "", dashed: bool = False) -> None:
        line = (0, (3, 2)) if dashed else "-"
        patch = FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, color=self.theme.quiet, ls=line, lw=1.1
        )
        self.axes.add_patch(patch)
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        self.text(middle[0], middle[1] + 0.8, text, size=8, ha="center", quiet=True)

    def text(self, x, y, text, *, size=9.5, quiet=False, **how) -> None:
        color = self.theme.quiet if quiet else self.theme.ink
        self.axes.text(x, y, text, size=size, color=color, **how)

    def picture(self, pixels, x, y, width, height) -> None:
        extent = (x, x + width, y, y + height)
        self.axes.imshow(pixels, extent=extent, aspect="auto", interpolation="nearest", zorder=3)


def draw(pen: Pen, words, patches, texts) -> None:
    theme = pen.theme
    for x, title, command in (
        (2, "Once, with CLIP", "clipocr cache build"),
        (42, "Kept", "words.cache: checked Zarr shards"),
        (86, "As often as you like", "clipocr train"),
    ):
        pen.text(x, 39.3, title, size=13, weight="bold")
        pen.text(x, 36.7, command, family="monospace", quiet=True)

    pen.box(21, 22.5, 14, 9, theme.frozen, "CLIP\nimage encoder\n(frozen)")
    pen.box(21, 6.5, 14, 9, theme.frozen, "CLIP\ntext encoder\n(frozen)")
    for y in (27, 11):
        pen.arrow((17, y), (20.6, y))
        pen.arrow((35.4, y), (39.6, y))
    for i, word in enumerate(words):
        pen.picture(word.view, 2, 30 - 4.6 * i, 14, 3.5)
        pen.text(2, 14 - 3.4 * i, " ".join(word.adapted_label), size=10, va="center")

    pen.box(40, 2, 41, 33.2, theme.cache)
    titles = ("view", *(name.replace("block", "block ") for name in BLOCKS))
    for x, title in zip((48.2, 60.4, 68.2, 76), titles, strict=True):
        pen.text(x, 32.9, title, size=7.5, ha="center", quiet=True)
    for i, word in enumerate(words):
        y = 28.9 - 10.2 * i
        pen.picture(word.view, 42, y, 12.8, 3.2)
        for j, name in enumerate(BLOCKS):
            pen.picture(patches[name][i].reshape(2, 8, 3), 56.8 + 7.8 * j, y, 7.2, 3.2)
        characters = [*word.adapted_label, "EOT"]
        pen.picture(texts[i][None, : len(characters)], 56.8, y - 4.9, 2 * len(characters), 2)
        pen.text(54.8, y - 3.9, "text, block 9", size=7.5, ha="right", va="center", quiet=True)
        for j, character in enumerate(characters):
            size = 5.5 if character == "EOT" else 8
            pen.text(57.8 + 2 * j, y - 2.4, character, size=size, ha="center", quiet=True)

    pen.box(93, 22.5, 14, 9, theme.trained, "encoder")
    pen.box(93, 9, 14, 9, theme.trained, "decoder")
    pen.arrow((81.4, 29.5), (92.6, 29.5), text="view")
    for y in (24.5, 13.5):
        pen.arrow((92.6, y), (81.4, y), text="resembles", dashed=True)
    pen.arrow((100, 22.2), (100, 18.4))
    pen.arrow((100, 8.7), (100, 5.6))
    pen.text(100, 3.4, words[0].adapted_label, size=11, ha="center")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
