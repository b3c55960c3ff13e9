"""Labels as the text encoder reads them: one character at a time, or as words.

CLIP-OCR splits the label into characters joined by spaces ('analysis' -> 'a n a l y s i s'), so
that each label position has a feature of its own (paper section 3.1; official ``system.py``
276-277). Layout of a sequence of C tokens: SOT, the characters, EOT, then id 0 up to the context
length, which is the token "!" and which the official loss does not mask.

The paper's table 7 compares this with word-level tokens. That is the official code without its
``' '.join``: the label goes through CLIP's BPE whole ('analysis' -> one token), and the loss still
matches label position j with token j + 1. So position j sees the j-th BPE token, then EOT, then
pads up to the label's length; no token belongs to a character, which is what the table shows.

Shapes: U unique strings, C context tokens, L label positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from open_clip.tokenizer import SimpleTokenizer

Ids = npt.NDArray[np.int32]

PAD_TOKEN = 0


class TextTokenizer(Protocol):
    """Labels to CLIP token ids."""

    def tokenize(self, label: str) -> tuple[list[int], list[int]]:
        """Return the ids from SOT to EOT, and the token that each label position before EOT reads.

        The position after those reads EOT, and the rest read pads.
        """
        ...


class CharacterTokenizer:
    """Character-split labels to CLIP token ids."""

    def __init__(self) -> None:
        self._bpe = SimpleTokenizer()
        self._of_character: dict[str, list[int]] = {}
        self.sot: int = self._bpe.sot_token_id
        self.eot: int = self._bpe.eot_token_id

    def tokenize(self, label: str) -> tuple[list[int], list[int]]:
        """Return the token ids of one label and the position at which each character ends.

        Every printable ASCII character is one token. Others may be several; the encoder is
        causal, so the last of them has seen the whole character and stands for it. CLIP's
        tokenizer lower-cases.
        """
        ids, ends = [self.sot], []
        for character in label:
            if character not in self._of_character:
                self._of_character[character] = self._bpe.encode(character)
            ids += self._of_character[character]
            ends.append(len(ids) - 1)
        ids.append(self.eot)
        return ids, ends


class WordTokenizer:
    """Whole labels to CLIP token ids."""

    def __init__(self) -> None:
        self._bpe = SimpleTokenizer()

    def tokenize(self, label: str) -> tuple[list[int], list[int]]:
        """Return the token ids of one label, and its BPE tokens as the positions to read.

        ASCII labels never have more tokens than characters.
        """
        ids = self._bpe.encode(label)
        positions = list(range(1, len(ids) + 1))
        return [self._bpe.sot_token_id, *ids, self._bpe.eot_token_id], positions


def text_tokenizer(tokens: str) -> TextTokenizer:
    """Return the tokenizer of ``char`` or ``word`` tokens."""
    return CharacterTokenizer() if tokens == "char" else WordTokenizer()


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
    node: Ids
    """Prefix number of each token, -1 where it is not kept. Shape: (U, C)."""
    is_new: npt.NDArray[np.bool_]
    """Whether the prefix appears here for the first time. Shape: (U, C)."""
    label_nodes: Ids
    """Prefix number of each label position: characters or words, EOT, pads; -1 where there is none.
    Shape: (U, L), in the order of the strings."""

    @property
    def num_nodes(self) -> int:
        """M: how many distinct prefixes are kept."""
        return int(self.is_new.sum())


def padded_length(ids: Sequence[int], ends: Sequence[int], max_label_length: int) -> int:
    """Return how many tokens a label takes with a pad for each label position it leaves empty.

    For words, and for characters of one token, that is max_label_length + 2, whatever the label.
    """
    return len(ids) + max_label_length - len(ends)


def build_trie(
    strings: Sequence[str], tokenizer: TextTokenizer, max_label_length: int, *, pads: bool
) -> TokenTrie:
    """Tokenize `strings` and number their prefixes.

    SOT is not kept (no label position uses it). With `pads`, every label position after EOT is kept
    too, as in the official run's longest batch; causality makes shorter batches a slice of it.

    Args:
        strings: U strings that take 1 to `max_label_length` positions before EOT.
        tokenizer: Gives their tokens.
        max_label_length: Decides L = max_label_length + 1.
        pads: Whether to keep the positions after EOT.
    """
    sequences = [tokenizer.tokenize(string) for string in strings]
    num_strings, num_positions = len(sequences), max_label_length + 1
    context = max(
        padded_length(ids, ends, max_label_length) if pads else len(ids) for ids, ends in sequences
    )
    tokens = np.full((num_strings, context), PAD_TOKEN, np.int32)
    # For each label position the token it reads: characters or words, EOT, then what follows it.
    position = np.full((num_strings, num_positions), -1, np.int64)
    eot_position = np.empty(num_strings, np.int64)
    for idx, (ids, ends) in enumerate(sequences):
        tokens[idx, : len(ids)] = ids
        eot_position[idx] = len(ids) - 1
        num_after = num_positions - len(ends) if pads else 1
        position[idx, : len(ends)] = ends
        position[idx, len(ends) : len(ends) + num_after] = len(ids) - 1 + np.arange(num_after)

    order = np.lexsort(tokens.T[::-1])
    tokens, position, eot_position = tokens[order], position[order], eot_position[order]
    last_kept = position.max(axis=1)
    kept = np.arange(context) <= last_kept[:, None]
    kept[:, 0] = False
    differs = np.ones_like(kept)
    differs[1:] = np.logical_or.accumulate(tokens[1:] != tokens[:-1], axis=1)
    # A prefix is new where it differs from the neighbour above or was not kept there.
    differs[1:] |= ~kept[:-1]
    is_new = kept & differs
    node = np.where(is_new, np.cumsum(is_new).reshape(is_new.shape) - 1, -1)
    node = np.where(kept, np.maximum.accumulate(node, axis=0), -1).astype(np.int32)

    label_nodes = np.full((num_strings, num_positions), -1, np.int32)
    has_position = position >= 0
    rows = np.nonzero(has_position)[0]
    label_nodes[has_position] = node[rows, position[has_position]]
    unsorted_nodes = np.empty_like(label_nodes)
    unsorted_nodes[order] = label_nodes
    return TokenTrie(
        tokens=tokens,
        order=order,
        eot_position=eot_position,
        node=node,
        is_new=is_new,
        label_nodes=unsorted_nodes,
    )
