"""`clipocr cache align`: whether CLIP finds the label of a 32x128 view, spelled out too.

The distillation rests on two things that CLIP was not trained for: views of 32x128, and labels
split into characters. The paper's figure 5 tries both: pictures against labels, each label once as
a word and once as characters. Its numbers add up to 1 along a picture's row, over both kinds of
label, so they are CLIP's own softmax over all of them: the `probabilities` here.

Shapes: N words, E joint width.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...shared.cache.codecs.codecs import Pixels, unfilter_pixels
from ...shared.cache.names import EOT, MANIFEST_NAME, PIXELS, TOKENIZERS
from ...shared.cache.reader import FeatureCache
from ...shared.charset import LabelProblem, LabelRules
from ...shared.data.images import ImageProblemError, decode_image, stretch
from ...shared.data.word_lmdb import WordLmdb, find_named_lmdbs, image_key
from ...shared.errors import CacheMissingError, DataError, UsageError
from ..builder.text import load_same_teacher
from ..teacher.clip import Teacher, load_teacher
from ..teacher.tokens import PAD_TOKEN, text_tokenizer
from .align_figure import draw_alignment

Floats = npt.NDArray[np.float32]

_BATCH = 64
_DRAWS_PER_WORD = 20
"""Samples looked at for each word wanted; labels repeat, and pictures may be broken."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """What `clipocr cache align` was asked for."""

    source: str | Path
    """A cache, whose first view is used, or a folder with LMDBs, whose pictures are stretched."""
    out: Path
    """PNG to write; the table goes beside it as CSV."""
    teacher: str | None = None
    """``MODEL/WEIGHTS``; None: the cache's own, or ViT-B-16/openai for LMDBs."""
    num_words: int = 200
    quantity: str = "cosine"
    """What the figure shows: ``cosine`` or ``probability``."""
    keep_unicode: bool = False
    """For LMDBs: labels are not reduced to ASCII."""
    seed: int = 0
    """Decides which words."""
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.num_words < 2:
            raise UsageError(f"words is {self.num_words}, expected 2 or more to tell apart")
        if self.out.suffix.lower() != ".png":
            raise UsageError(f"{self.out} is not a PNG; name it {self.out.with_suffix('.png')}")


@dataclass(frozen=True, kw_only=True)
class AlignedWord:
    """One word: what it says, and what it looks like to student and teacher."""

    label: str
    name: str
    """Source and LMDB key."""
    view: Pixels
    """Shape: (32, 128, 3)."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Pictures against labels, the labels tokenised in one way."""

    tokens: str
    """``char`` or ``word``."""
    cosines: Floats
    """Rows are pictures, columns labels; row i and column i are one word. Shape: (N, N)."""
    probabilities: Floats
    """CLIP's softmax of each picture over the labels of both kinds. Shape: (N, N)."""

    @property
    def mean_own(self) -> float:
        """Mean cosine of a picture and its own label."""
        return float(np.diag(self.cosines).mean())

    @property
    def mean_other(self) -> float:
        """Mean cosine of a picture and the labels of other words."""
        num_words = len(self.cosines)
        total = float(self.cosines.sum(dtype=np.float64)) - num_words * self.mean_own
        return total / (num_words * (num_words - 1))

    @property
    def label_top1(self) -> float:
        """Share of pictures whose nearest label is their own."""
        return float((self.cosines.argmax(axis=1) == np.arange(len(self.cosines))).mean())

    @property
    def picture_top1(self) -> float:
        """Share of labels whose nearest picture is their own."""
        return float((self.cosines.argmax(axis=0) == np.arange(len(self.cosines))).mean())

    @property
    def mean_probability(self) -> float:
        """Mean probability of a picture's own label, of this kind."""
        return float(np.diag(self.probabilities).mean())


@dataclass(frozen=True, kw_only=True)
class AlignSummary:
    """What came out, and which files hold it."""

    num_words: int
    num_drawn: int
    """Words in the figure; more would not be legible."""
    alignments: tuple[Alignment, ...]
    table: Path
    teacher_name: str
    teacher_is_random: bool
    undrawable: str
    """Characters of the figure's labels for which this machine has no font."""


def align_words(config: AlignConfig) -> AlignSummary:
    """Compare words' pictures with their labels; write the figure and the table.

    Raises:
        CacheError: the cache has nothing built, or was made by another teacher.
        DataError: fewer than two words with different labels.
        TeacherError: CLIP weights cannot be had, or it pools unlike CLIP.
    """
    cache = _as_cache(config.source)
    teacher = _load_teacher(config, cache)
    words = _draw_words(config, cache, teacher.context_length)
    alignments = compare_words(words, teacher)
    table = config.out.with_suffix(".csv")
    _write_table(table, words, alignments)
    drawn = draw_alignment(
        config.out,
        labels=[word.label for word in words],
        views=[word.view for word in words],
        matrices={
            a.tokens: a.cosines if config.quantity == "cosine" else a.probabilities
            for a in alignments
        },
        quantity=config.quantity,
        captions={alignment.tokens: _caption(alignment) for alignment in alignments},
        teacher=teacher.spec.name,
        is_random=teacher.spec.is_random,
    )
    return AlignSummary(
        num_words=len(words),
        num_drawn=drawn.num_words,
        alignments=alignments,
        table=table,
        teacher_name=teacher.spec.name,
        teacher_is_random=teacher.spec.is_random,
        undrawable=drawn.undrawable,
    )


def compare_words(words: Sequence[AlignedWord], teacher: Teacher) -> tuple[Alignment, ...]:
    """Return the words' pictures against their labels, for each kind of tokens."""
    views = torch.from_numpy(np.stack([word.view for word in words]))
    pictures = torch.cat([teacher.image_embeddings(views[at]) for at in _batches(len(views))])
    labels = [word.label for word in words]
    cosines = {
        tokens: _cosines(pictures, _label_embeddings(labels, tokens, teacher))
        for tokens in TOKENIZERS
    }
    logits = teacher.logit_scale * torch.cat(list(cosines.values()), dim=1)
    probabilities = logits.softmax(dim=1).chunk(len(TOKENIZERS), dim=1)
    return tuple(
        Alignment(tokens=tokens, cosines=of_tokens.numpy(), probabilities=shares.numpy())
        for (tokens, of_tokens), shares in zip(cosines.items(), probabilities, strict=True)
    )


def _cosines(pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Shape: (N, E), (N, E) -> (N, N), on the CPU."""
    normalized = (torch.nn.functional.normalize(x.double(), dim=1) for x in (pictures, labels))
    of_pictures, of_labels = normalized
    return (of_pictures @ of_labels.T).float().cpu()


def _label_embeddings(labels: Sequence[str], tokens: str, teacher: Teacher) -> torch.Tensor:
    """Return the projected EOT of each label. Shape: (N, E)."""
    tokenizer = text_tokenizer(tokens, teacher.context_length)
    sequences = [s for s in map(tokenizer.tokenize, labels) if s is not None]
    context = max(len(s.ids) for s in sequences)
    padded = torch.tensor([s.ids + [PAD_TOKEN] * (context - len(s.ids)) for s in sequences])
    eot = torch.tensor([s.eot_position for s in sequences])
    batches = _batches(len(labels))
    return torch.cat([teacher.text_features(padded[at], eot[at])[EOT] for at in batches])


def _batches(num_rows: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, num_rows, _BATCH)]


def _caption(alignment: Alignment) -> str:
    return (
        f"cosine {alignment.mean_own:.3f} to the own label, {alignment.mean_other:.3f} to others\n"
        f"finds its label: {100 * alignment.label_top1:.0f} % of pictures\n"
        f"finds its picture: {100 * alignment.picture_top1:.0f} % of labels"
    )


def _write_table(path: Path, words: Sequence[AlignedWord], alignments: Sequence[Alignment]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "picture_label", "label", "tokens", "cosine", "probability"])
        for alignment in alignments:
            for row, picture in enumerate(words):
                for column, word in enumerate(words):
                    cosine = f"{alignment.cosines[row, column]:.6f}"
                    probability = f"{alignment.probabilities[row, column]:.6f}"
                    known = (picture.name, picture.label, word.label, alignment.tokens)
                    writer.writerow([*known, cosine, probability])


# -- words and teacher -----------------------------------------------------------------------------


def _as_cache(source: str | Path) -> FeatureCache | None:
    is_cache = not isinstance(source, Path) or (source / MANIFEST_NAME).exists()
    return FeatureCache.open(source) if is_cache else None


def _load_teacher(config: AlignConfig, cache: FeatureCache | None) -> Teacher:
    if cache is not None:
        return load_same_teacher(config.source, cache.spec, config.teacher, config.device)
    # The taps are not looked at, but a teacher has some.
    return load_teacher(
        config.teacher or "ViT-B-16/openai",
        image_taps=(1,),
        text_taps=(1,),
        precision="fp32",
        device=config.device,
    )


def _draw_words(
    config: AlignConfig, cache: FeatureCache | None, context_length: int
) -> list[AlignedWord]:
    """Return up to `num_words` random words that CLIP's tokenizer can tell apart.

    It lower-cases, so of labels that differ in case only the first is taken; and labels that take
    more tokens than the encoder has positions are left out.
    """
    tokenizers = [text_tokenizer(tokens, context_length) for tokens in TOKENIZERS]
    words: dict[str, AlignedWord] = {}
    for word in _words_of_lmdbs(config) if cache is None else _words_of_cache(config, cache):
        sequences = [tokenizer.tokenize(word.label) for tokenizer in tokenizers]
        if all(sequence and len(sequence.ids) <= context_length for sequence in sequences):
            words.setdefault(word.label.lower(), word)
        if len(words) == config.num_words:
            break
    if len(words) < 2:
        raise DataError(
            f"{config.source} gave {len(words)} words with labels that differ, expected 2 or more; "
            "look at it with: clipocr data check, or clipocr cache info"
        )
    return list(words.values())


def _words_of_lmdbs(config: AlignConfig) -> Iterator[AlignedWord]:
    assert isinstance(config.source, Path), config.source
    rules = LabelRules(keep_unicode=config.keep_unicode)
    lmdbs = {name: WordLmdb(path) for name, path in find_named_lmdbs([config.source]).items()}
    for name, sample_idx in _draw_samples(config, {k: len(lmdb) for k, lmdb in lmdbs.items()}):
        label = rules.apply(lmdbs[name].label(sample_idx) or "")
        if isinstance(label, LabelProblem):
            continue
        try:
            picture = decode_image(lmdbs[name].image(sample_idx) or b"")
        except ImageProblemError:
            continue
        yield AlignedWord(
            label=label, name=f"{name}/{image_key(sample_idx).decode()}", view=stretch(picture)
        )


def _draw_samples(config: AlignConfig, sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield random (source, sample from 1), each once; nothing is read of the others."""
    total = sum(sizes.values())
    num_draws = min(total, _DRAWS_PER_WORD * config.num_words)
    for number in random.Random(config.seed).sample(range(total), num_draws):
        at = number
        for name, num_samples in sizes.items():
            if at < num_samples:
                yield name, at + 1
                break
            at -= num_samples


def _words_of_cache(config: AlignConfig, cache: FeatureCache) -> Iterator[AlignedWord]:
    units = cache.units()
    if not units:
        raise CacheMissingError(
            f"{cache.storage} has no finished unit yet; run its cache build command again"
        )
    labels = cache.labels()
    # Rows were permuted at the build, so a random unit from its start on is a fair sample.
    for unit_idx in random.Random(config.seed).sample(units, len(units)):
        start, stop = cache.spec.unit_range(unit_idx)
        columns, bad = cache.rows(unit_idx), cache.unit(0, unit_idx).bad_rows
        for row in range(start, stop):
            if row in bad:
                continue
            stored = torch.from_numpy(cache.image_reader(0, PIXELS).rows(row, row + 1).copy())
            source = cache.spec.sources[columns["source"][row - start]].name
            key = image_key(int(columns["lmdb_index"][row - start])).decode()
            yield AlignedWord(
                label=labels[columns["label"][row - start]],
                name=f"{source}/{key}",
                view=unfilter_pixels(stored)[0].numpy(),
            )
