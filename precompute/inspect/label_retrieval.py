"""`clipocr cache align`: whether CLIP finds the label of a view, spelled out too.

The distillation rests on two things that CLIP was not trained for: stretched views, and labels
split into characters. The paper's figure 5 tries both: pictures against labels, each label once as
a word and once as characters. Its numbers add up to 1 along a picture's row, over both kinds of
label, so they are CLIP's own softmax over all of them: the `probabilities` here.

Shapes: N words, E joint width, H and W height and width of a view.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from ...shared.cache.codecs.codecs import Pixels
from ...shared.cache.names import EOT, LABEL_TOKENIZERS, PIXELS
from ...shared.cache.reader import FeatureCache
from ...shared.cache.spec import TeacherSpec
from ...shared.cache.words import Row, WordReader
from ...shared.device import choose_device
from ...shared.errors import DataError
from ...shared.geometry import ViewSize
from ..builder.text import load_same_teacher
from ..teacher.clip import Teacher
from ..teacher.tokens import PAD_TOKEN, TeacherTokenizer
from .options import RetrievalOptions

Floats = npt.NDArray[np.float32]

_BATCH = 64
_MOST_DRAWN = 16
"""Words in the figure; the numbers in the cells are legible up to here."""
_TITLES = {"char": "label as characters", "word": "label as a word"}


@dataclass(frozen=True, kw_only=True)
class PicturedWord:
    """One word: what it says, and what it looks like to student and teacher."""

    label: str
    name: str
    """Source and LMDB key."""
    view: Pixels
    """Shape: (H, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class LabelRetrieval:
    """Pictures against labels, the labels tokenised in one way."""

    tokens: str
    """``char`` or ``word``."""
    cosines: Floats
    """Rows are pictures, columns labels; row i and column i are one word. Shape: (N, N)."""
    probabilities: Floats
    """CLIP's softmax of each picture over the labels of both kinds. Shape: (N, N)."""

    @property
    def figures(self) -> dict[str, float]:
        """What the matrices say, by what to call it; shares in percent."""
        num_words = len(self.cosines)
        own = float(np.diag(self.cosines).mean())
        others = float(self.cosines.sum(dtype=np.float64)) - num_words * own
        nearest_label, nearest_picture = (self.cosines.argmax(axis=axis) for axis in (1, 0))
        return {
            "own label": own,
            "other labels": others / (num_words * (num_words - 1)),
            "picture to label %": 100 * float((nearest_label == np.arange(num_words)).mean()),
            "label to picture %": 100 * float((nearest_picture == np.arange(num_words)).mean()),
            "own probability": float(np.diag(self.probabilities).mean()),
        }

    @property
    def chance(self) -> dict[str, float]:
        """What those of the figures would be that a blind choice has a value of."""
        share = 1 / len(self.cosines)
        return {
            "picture to label %": 100 * share,
            "label to picture %": 100 * share,
            "own probability": share / len(LABEL_TOKENIZERS),
        }


def retrieve_labels(
    place: str | Path, options: RetrievalOptions
) -> tuple[tuple[LabelRetrieval, ...], TeacherSpec]:
    """Compare words of a cache's first view with their labels; write the figure and the table."""
    cache = FeatureCache.open(place)
    device = choose_device(options.device)
    teacher = load_same_teacher(place, cache.spec, options.teacher, device)
    cache.require_images((), pixels=True)
    words = _choose_words(cache, options, teacher.context_length)
    retrievals = compare_words(words, teacher)
    _write_table(options.table, words, retrievals)
    _draw_figure(options.out, words, retrievals, options.quantity, teacher.spec)
    return retrievals, teacher.spec


def _choose_words(
    cache: FeatureCache, options: RetrievalOptions, context_length: int
) -> list[PicturedWord]:
    """Return words with pictures that CLIP's tokenizer can tell apart: those asked for, or random.

    It lower-cases, so of labels that differ in case only the first is taken; and labels that take
    more tokens than the encoder has positions are left out.
    """
    tokenizers = [TeacherTokenizer(tokens, context_length) for tokens in LABEL_TOKENIZERS]
    words: dict[str, PicturedWord] = {}
    reader = WordReader(cache, images=())
    choice = options.choice
    rows: Iterable[Row] = reader.random_rows(choice.seed)
    if choice.labels or choice.keys:
        chosen = reader.rows_of(choice.labels, choice.keys, choice.seed)
        rows = chain.from_iterable(chosen.values())
    for row in rows:
        key = row.label.lower()
        if key in words or reader.problem(0, row.idx):
            continue
        sequences = [some.tokenize(row.label) for some in tokenizers]
        if any(sequence is None or len(sequence.ids) > context_length for sequence in sequences):
            continue
        words[key] = PicturedWord(
            label=row.label,
            name=row.key,
            view=reader.arrays(0, row.idx)[PIXELS],
        )
        if len(words) == options.words:
            break
    if len(words) < 2:
        raise DataError(
            f"{cache.storage} gave {len(words)} words with labels that differ, expected 2 or "
            "more; look at it with: clipocr cache info"
        )
    return list(words.values())


def compare_words(words: Sequence[PicturedWord], teacher: Teacher) -> tuple[LabelRetrieval, ...]:
    """Compare every picture with every label, the labels read in both ways."""
    views = torch.from_numpy(np.stack([word.view for word in words]))
    normalize = torch.nn.functional.normalize
    pictures = torch.cat([teacher.image_embeddings(some) for some in torch.split(views, _BATCH)])
    labels = [word.label for word in words]
    cosines = {}
    for tokens in LABEL_TOKENIZERS:
        of_labels = normalize(_label_embeddings(labels, tokens, teacher).double())
        cosines[tokens] = (normalize(pictures.double()) @ of_labels.T).float().cpu()
    logits = teacher.logit_scale * torch.cat(list(cosines.values()), dim=1)
    probabilities = logits.softmax(dim=1).chunk(len(LABEL_TOKENIZERS), dim=1)
    return tuple(
        LabelRetrieval(tokens=tokens, cosines=of_tokens.numpy(), probabilities=shares.numpy())
        for (tokens, of_tokens), shares in zip(cosines.items(), probabilities, strict=True)
    )


def _label_embeddings(labels: Sequence[str], tokens: str, teacher: Teacher) -> torch.Tensor:
    """Return the projected EOT of each label. Shape: (N, E)."""
    tokenizer = TeacherTokenizer(tokens, teacher.context_length)
    sequences = [s for s in map(tokenizer.tokenize, labels) if s is not None]
    context = max(len(s.ids) for s in sequences)
    padded = torch.tensor([s.ids + [PAD_TOKEN] * (context - len(s.ids)) for s in sequences])
    eot = torch.tensor([s.eot_position for s in sequences])
    batches = zip(torch.split(padded, _BATCH), torch.split(eot, _BATCH), strict=True)
    return torch.cat([teacher.text_features(*batch)[EOT] for batch in batches])


def _write_table(
    path: Path, words: Sequence[PicturedWord], retrievals: Sequence[LabelRetrieval]
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "picture_label", "label", "tokens", "cosine", "probability"])
        for some in retrievals:
            for row, picture in enumerate(words):
                for column, word in enumerate(words):
                    values = (some.cosines[row, column], some.probabilities[row, column])
                    known = (picture.name, picture.label, word.label, some.tokens)
                    writer.writerow([*known, *(f"{value:.6f}" for value in values)])


def _draw_figure(
    path: Path,
    words: Sequence[PicturedWord],
    retrievals: Sequence[LabelRetrieval],
    quantity: str,
    teacher: TeacherSpec,
) -> None:
    """Draw the first words' pictures, and beside each its row of the heat maps, as a PNG."""
    total, words = len(words), words[:_MOST_DRAWN]
    num_words = len(words)
    shown = [
        (some.cosines if quantity == "cosine" else some.probabilities)[:num_words, :num_words]
        for some in retrievals
    ]
    low, high = float(np.min(shown)), float(np.max(shown))
    cell_inches = max(0.42, 3.2 / num_words)
    width = (4 + num_words * len(shown)) * cell_inches + 1.5
    figure = Figure(figsize=(width, num_words * cell_inches + 3), layout="constrained")
    random = "\nRANDOM weights: this says nothing of CLIP" if teacher.is_random else ""
    size = ViewSize(*words[0].view.shape[:2])
    figure.suptitle(
        f"{teacher.name}: {quantity} of views of {size} (rows) and labels (columns)\n"
        f"{num_words} of {total:,} words{random}"
    )
    ratios = [4, *[num_words] * len(shown)]
    crops, *panels = figure.subplots(1, len(ratios), width_ratios=ratios)
    for row, word in enumerate(words):
        crops.imshow(word.view, extent=(0, 1, row + 0.45, row - 0.45), aspect="auto")
    crops.set(xlim=(0, 1), ylim=(num_words - 0.5, -0.5))
    crops.set_axis_off()
    for axis, some, matrix in zip(panels, retrievals, shown, strict=True):
        # cividis is perceptually uniform, and the same to the colour-blind.
        heat = axis.imshow(matrix, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        labels = [word.label for word in words]
        axis.set_xticks(range(num_words), labels, rotation=90, fontsize=9, parse_math=False)
        axis.set_yticks([])
        axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
        own, other, of_pictures, of_labels, _ = some.figures.values()
        chance = some.chance["picture to label %"]
        axis.set_xlabel(
            f"{_TITLES[some.tokens]}\ncosine {own:.3f} to the own label, {other:.3f} to others\n"
            f"finds its label: {of_pictures:.1f} % of pictures (by chance {chance:.1f} %)\n"
            f"finds its picture: {of_labels:.1f} % of labels (by chance {chance:.1f} %)",
            fontsize=9,
        )
        for (row, column), value in np.ndenumerate(matrix):
            color = "white" if value < (low + high) / 2 else "black"
            axis.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color
            )
    figure.colorbar(heat, ax=panels, aspect=30, pad=0.02, label=quantity)
    figure.savefig(path, dpi=150, format="png")
