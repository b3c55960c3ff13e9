"""Labels as the text encoder reads them: one character at a time, or as words.

CLIP-OCR splits the label into characters joined by spaces ('analysis' -> 'a n a l y s i s'), so
that each label position has a feature of its own (paper section 3.1; official ``system.py``
276-277). Layout of a sequence of C tokens: SOT, the characters, EOT, then id 0 up to the context
length, which is the token "!" and which the official loss does not mask.

The paper's table 7 compares this with word-level tokens. That is the official code without its
``' '.join``: the label goes through CLIP's BPE whole ('analysis' -> one token), and the loss still
matches label position j with token j + 1. So position j sees the j-th BPE token, then EOT, then
pads up to the label's length. No token belongs to a character, and that is what the table compares.

DPTR puts the label into a sentence, and its decoder reads all 77 tokens: SOT, the sentence, EOT,
and the pads after it (official ``dptr_parseq_clip_b_decoder.py``, ``clip_encode``).

Shapes: U unique strings, C context tokens, L label positions.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from open_clip.tokenizer import SimpleTokenizer

from ...shared.cache import names

Ids = npt.NDArray[np.int32]

PAD_TOKEN = 0


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """One label as the text encoder reads it."""

    ids: list[int]
    """From SOT to EOT; pads, id 0, follow as far as positions read them."""
    read: list[int]
    """For each of the L positions the token that it reads, SOT being 0."""

    @property
    def eot_position(self) -> int:
        """Which token is EOT."""
        return len(self.ids) - 1

    @property
    def length(self) -> int:
        """Tokens that the encoder has to see, pads among them."""
        return max(len(self.ids), max(self.read) + 1)


class TeacherTokenizer:
    """Labels to CLIP's token ids, and which of the tokens are read.

    With ``char``, position j reads the last token of character j. Every printable ASCII character
    is one token; others may be several, of which the last has seen the whole character, because
    the encoder is causal. With ``word``, position j reads BPE token j of the whole label; ASCII
    labels never have more tokens than characters. With ``prompt``, position j reads token j of the
    sentence, SOT being 0. CLIP's tokenizer lower-cases.
    """

    def __init__(
        self, kind: str, max_label_length: int, template: str = "", context_length: int = 77
    ) -> None:
        """Choose what is read.

        Args:
            kind: One of `names.TOKENIZERS`.
            max_label_length: Of the longest label, in characters.
            template: Of prompts.
            context_length: Of the text encoder, all of which prompts read.
        """
        self._template = template
        self._context_length = context_length
        is_prompt = kind == names.PROMPT
        self.num_positions = context_length if is_prompt else max_label_length + 1
        """L: positions that are read of every label."""
        self._splits = kind == "char"
        self._bpe = SimpleTokenizer()
        self._of_character = functools.cache(self._bpe.encode)

    def tokenize(self, label: str) -> TokenSequence | None:
        """Return a label's tokens, or None if it takes more positions than there are.

        All pads are read that the official run's longest batch would see: since the encoder is
        causal, a shorter batch is a slice of it.
        """
        if self._template:
            return self._tokenize_prompt(label)
        if self._splits:
            pieces = [self._of_character(character) for character in label]
        else:
            pieces = [[token] for token in self._bpe.encode(label)]
        num_after = self.num_positions - len(pieces)
        if num_after < 1:
            return None
        ids = [self._bpe.sot_token_id, *itertools.chain(*pieces), self._bpe.eot_token_id]
        ends = list(itertools.accumulate(map(len, pieces)))
        return TokenSequence(ids=ids, read=[*ends, *range(len(ids) - 1, len(ids) - 1 + num_after)])

    def _tokenize_prompt(self, label: str) -> TokenSequence | None:
        tokens = self._bpe.encode(self._template.replace(names.LABEL_PLACE, label))
        ids = [self._bpe.sot_token_id, *tokens, self._bpe.eot_token_id]
        if len(ids) > self._context_length:
            return None
        return TokenSequence(ids=ids, read=list(range(self._context_length)))


@dataclass(frozen=True, kw_only=True)
class TokenTrie:
    """Token sequences of all strings, each distinct prefix numbered once.

    The text encoder is causal: the feature at a position is a function of the tokens up to it, so
    one row per distinct prefix holds every feature of every string without loss. Pads follow the
    EOT in the same chain.
    """

    tokens: Ids
    """Padded sequences, sorted so that shared prefixes are neighbours. Shape: (U, C)."""
    order: npt.NDArray[np.int64]
    """`tokens[i]` belongs to the string `order[i]`. Shape: (U,)."""
    eot_position: npt.NDArray[np.int64]
    """Shape: (U,), in sorted order."""
    prefix: Ids
    """Number of the prefix that ends in each token, -1 where it is not kept. Shape: (U, C)."""
    is_new: npt.NDArray[np.bool_]
    """Whether the prefix appears here for the first time. Shape: (U, C)."""
    nodes: Ids
    """Prefix number that each position reads. Shape: (U, L), in the order of the strings."""

    @property
    def num_prefixes(self) -> int:
        """M: how many distinct prefixes are kept."""
        return int(self.is_new.sum())


def build_trie(strings: Sequence[str], tokenizer: TeacherTokenizer) -> TokenTrie:
    """Tokenize U strings that the tokenizer has positions for, and number their prefixes.

    Kept are those from the first token that a position of any string reads to the last that a
    position of this string does; SOT is thus left out where no position reads it.
    """
    sequences = [tokenizer.tokenize(string) for string in strings]
    read = [sequence for sequence in sequences if sequence is not None]
    assert len(read) == len(strings)
    context = max((sequence.length for sequence in read), default=0)
    tokens = np.full((len(read), context), PAD_TOKEN, np.int32)
    for row, sequence in zip(tokens, read, strict=True):
        row[: len(sequence.ids)] = sequence.ids
    position = np.array([sequence.read for sequence in read], np.int64)
    eot_position = np.array([sequence.eot_position for sequence in read], np.int64)

    order = np.lexsort(tokens.T[::-1])
    tokens, position, eot_position = tokens[order], position[order], eot_position[order]
    kept = np.arange(context) <= position.max(axis=1)[:, None]
    kept[:, : position.min()] = False
    differs = np.ones_like(kept)
    differs[1:] = np.logical_or.accumulate(tokens[1:] != tokens[:-1], axis=1)
    # A prefix is new where it differs from the neighbour above or was not kept there.
    differs[1:] |= ~kept[:-1]
    is_new = kept & differs
    prefix = np.where(is_new, np.cumsum(is_new).reshape(is_new.shape) - 1, -1)
    prefix = np.where(kept, np.maximum.accumulate(prefix, axis=0), -1).astype(np.int32)
    nodes = np.empty(position.shape, np.int32)
    nodes[order] = np.take_along_axis(prefix, position, axis=1)
    return TokenTrie(
        tokens=tokens,
        order=order,
        eot_position=eot_position,
        prefix=prefix,
        is_new=is_new,
        nodes=nodes,
    )
