"""Words that language does not help with, for the paper's table 13.

The authors draw 1,000 labels of the IC15 test set and render each with its characters shuffled
(synth-shuffle), and render 1,000 words of random characters (synth-random). How they rendered, how
long their random words are, and whether a shuffle may leave a word as it was, they do not say. Here
random words are as long as the chosen labels, and a shuffle changes every word that has another
order of its characters.

Every word is a function of the seed and the labels alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from ...shared.charset import Charset, LabelProblem, LabelRules
from ...shared.data.word_lmdb import WordLmdb, find_named_lmdbs
from ...shared.errors import DataError
from .options import NonwordOptions


def usable_labels(root: Path, charset: Charset, rules: LabelRules) -> list[str]:
    """Return what `charset` leaves of every label of the LMDBs at or below `root`, in order.

    Labels that a cache would reject are left out, and those of which nothing is left.
    """
    labels = []
    for path in find_named_lmdbs([root]).values():
        for _, raw_label in WordLmdb(path).labels():
            kept = rules.apply(raw_label or "")
            adapted = "" if isinstance(kept, LabelProblem) else charset.adapt(kept)
            if adapted:
                labels.append(adapted)
    if not labels:
        raise DataError(
            f"{root} holds no label in charset {charset.name}; "
            f"look at them with: clipocr data check {root}"
        )
    return labels


def make_nonwords(labels: Sequence[str], options: NonwordOptions) -> list[str]:
    """Return `count` words made of random labels, each label taken once at most.

    Words that occur often are chosen often. ``shuffle`` puts a label's characters in random order;
    ``random`` takes its length only, and each character of the charset is as likely as any other.
    """
    if options.count > len(labels):
        raise DataError(
            f"count is {options.count:,}, but there are {len(labels):,} usable labels; "
            f"pass --count {len(labels)} or less"
        )
    rng = random.Random(options.drawing.seed)
    chosen = rng.sample(labels, options.count)
    if options.mode == "shuffle":
        return [_shuffled(label, rng) for label in chosen]
    return ["".join(rng.choices(options.charset.characters, k=len(label))) for label in chosen]


def _shuffled(label: str, rng: random.Random) -> str:
    can_change = len(set(label)) > 1
    while True:
        shuffled = "".join(rng.sample(label, len(label)))
        if shuffled != label or not can_change:
            return shuffled
