from __future__ import annotations

import string

import numpy as np
import pytest

from clipocr.precompute.teacher.tokens import (
    TeacherTokenizer,
    TokenSequence,
    TokenTrie,
    build_trie,
)

STRINGS = ["cat", "car", "catalog", "a", "dog", "cat5"]


@pytest.fixture(scope="module")
def tokenizer() -> TeacherTokenizer:
    return TeacherTokenizer("char", 25)


def test_equals_the_tokenizer_on_spaced_characters(tokenizer: TeacherTokenizer) -> None:
    bpe = tokenizer._bpe
    rng = np.random.default_rng(0)
    characters = np.array(list(string.printable.strip()))
    for _ in range(300):
        label = "".join(rng.choice(characters, rng.integers(1, 26)))
        sequence = tokenizer.tokenize(label)
        assert sequence.ids == [49406, *bpe.encode(" ".join(label)), 49407]
        assert sequence.read == list(range(1, 27))  # One token a character, then EOT and pads.
        assert sequence.length == 27


def test_known_ids(tokenizer: TeacherTokenizer) -> None:
    assert tokenizer.tokenize("analysis").ids[1:-1] == [320, 333, 320, 331, 344, 338, 328, 338]


def test_case_is_lost_and_foreign_characters_end_at_their_last_token(
    tokenizer: TeacherTokenizer,
) -> None:
    assert tokenizer.tokenize("Cat") == tokenizer.tokenize("cat")
    sequence = tokenizer.tokenize("日a")
    num_tokens = len(tokenizer._bpe.encode("日"))
    assert sequence.read == list(range(num_tokens, num_tokens + 26))
    assert sequence.eot_position == sequence.read[2]
    assert sequence.length == num_tokens + 26


def test_a_label_that_is_too_long_has_no_positions() -> None:
    assert TeacherTokenizer("char", 3).tokenize("abc")
    assert TeacherTokenizer("char", 3).tokenize("abcd") is None


def prefixes(trie: TokenTrie) -> dict[int, tuple[int, ...]]:
    """Return each node's token prefix, worked out from where the node is new."""
    rows, columns = np.nonzero(trie.is_new)
    nodes = trie.prefix[rows, columns]
    return {
        int(n): tuple(trie.tokens[r, : c + 1].tolist())
        for n, r, c in zip(nodes, rows, columns, strict=True)
    }


def test_every_position_finds_its_own_prefix() -> None:
    tokenizer = TeacherTokenizer("char", 9)
    trie = build_trie(STRINGS, tokenizer)
    prefix_of = prefixes(trie)
    assert len(prefix_of) == trie.num_prefixes
    assert len(set(prefix_of.values())) == trie.num_prefixes  # No prefix is stored twice.
    for label, nodes in zip(STRINGS, trie.nodes, strict=True):
        sequence = [*tokenizer.tokenize(label).ids, *[0] * 11][:11]
        for position in range(10):
            assert prefix_of[int(nodes[position])] == tuple(sequence[: position + 2])


def test_characters_of_several_tokens_keep_all_their_pads() -> None:
    tokenizer = TeacherTokenizer("char", 9)
    trie = build_trie(["日本", "abcdefgh"], tokenizer)
    prefix_of = prefixes(trie)
    sequence = tokenizer.tokenize("日本")
    assert len(sequence.ids) > 4
    for node, last in zip(trie.nodes[0], sequence.read, strict=True):
        assert prefix_of[int(node)] == tuple([*sequence.ids, *[0] * 9][: last + 1])


class PromptTokenizer:
    """Every one of some positions of a string is read, SOT among them."""

    num_positions = 6

    def tokenize(self, string: str) -> TokenSequence:
        ids = [1, *map(ord, string), 2]
        return TokenSequence(ids=ids, read=list(range(self.num_positions)))


def test_sot_is_kept_where_a_position_reads_it() -> None:
    trie = build_trie(["ab", "ac", "d"], PromptTokenizer())
    prefix_of = prefixes(trie)
    assert trie.tokens.shape == (3, 6)
    assert set(trie.nodes[:, 0]) == {trie.nodes[0, 0]}  # SOT is one prefix of all.
    assert [prefix_of[node] for node in trie.nodes[1]] == [
        (1,), (1, 97), (1, 97, 99), (1, 97, 99, 2), (1, 97, 99, 2, 0), (1, 97, 99, 2, 0, 0),
    ]  # fmt: skip
    assert trie.num_prefixes == 1 + 1 + 2 * 4 + 5


def test_number_of_prefixes_by_hand(tokenizer: TeacherTokenizer) -> None:
    # c, ca, cat, cat$, car, car$ and d, do, dog, dog$; and 22 pads for each of three labels.
    assert build_trie(["cat", "car", "dog"], tokenizer).num_prefixes == 10 + 3 * 22


def test_labels_that_tokenize_alike_share_everything() -> None:
    trie = build_trie(["Cat", "cat"], TeacherTokenizer("char", 5))
    np.testing.assert_array_equal(trie.nodes[0], trie.nodes[1])
    assert trie.num_prefixes == 6


def test_eot_positions_and_order() -> None:
    trie = build_trie(STRINGS, TeacherTokenizer("char", 9))
    for row, string_idx in enumerate(trie.order):
        assert trie.tokens[row, trie.eot_position[row]] == 49407
        assert trie.eot_position[row] == len(STRINGS[string_idx]) + 1
