from __future__ import annotations

import string

import numpy as np
import pytest

from clipocr.precompute.teacher.tokens import CharacterTokenizer, TokenTrie, build_trie

STRINGS = ["cat", "car", "catalog", "a", "dog", "cat5"]


@pytest.fixture(scope="module")
def tokenizer() -> CharacterTokenizer:
    return CharacterTokenizer()


def test_equals_the_tokenizer_on_spaced_characters(tokenizer: CharacterTokenizer) -> None:
    bpe = tokenizer._bpe
    rng = np.random.default_rng(0)
    characters = np.array(list(string.printable.strip()))
    for _ in range(300):
        label = "".join(rng.choice(characters, rng.integers(1, 26)))
        ids, ends = tokenizer.tokenize(label)
        assert ids == [49406, *bpe.encode(" ".join(label)), 49407]
        assert ends == list(range(1, len(label) + 1))  # One token for each of them.


def test_known_ids(tokenizer: CharacterTokenizer) -> None:
    ids, _ = tokenizer.tokenize("analysis")
    assert ids[1:-1] == [320, 333, 320, 331, 344, 338, 328, 338]


def test_case_is_lost_and_foreign_characters_end_at_their_last_token(
    tokenizer: CharacterTokenizer,
) -> None:
    assert tokenizer.tokenize("Cat") == tokenizer.tokenize("cat")
    ids, ends = tokenizer.tokenize("日a")
    assert ends[0] == len(tokenizer._bpe.encode("日"))
    assert ends[1] == ends[0] + 1
    assert len(ids) == ends[-1] + 2


def prefixes(trie: TokenTrie) -> dict[int, tuple[int, ...]]:
    """Return each node's token prefix, worked out from where the node is new."""
    rows, columns = np.nonzero(trie.is_new)
    nodes = trie.node[rows, columns]
    return {
        int(n): tuple(trie.tokens[r, : c + 1].tolist())
        for n, r, c in zip(nodes, rows, columns, strict=True)
    }


@pytest.mark.parametrize("pads", [False, True])
def test_every_label_position_finds_its_own_prefix(
    tokenizer: CharacterTokenizer, pads: bool
) -> None:
    trie = build_trie(STRINGS, tokenizer, 9, pads=pads)
    prefix_of = prefixes(trie)
    assert len(prefix_of) == trie.num_nodes
    assert len(set(prefix_of.values())) == trie.num_nodes  # No prefix is stored twice.
    for label, nodes in zip(STRINGS, trie.label_nodes, strict=True):
        sequence = [*tokenizer.tokenize(label)[0], *[0] * 11][:11]
        num_positions = 10 if pads else len(label) + 1
        for position in range(num_positions):
            assert prefix_of[int(nodes[position])] == tuple(sequence[: position + 2])
        assert (nodes[num_positions:] == -1).all()


def test_characters_of_several_tokens_keep_all_their_pads(tokenizer: CharacterTokenizer) -> None:
    labels = ["日本", "abcdefgh"]
    trie = build_trie(labels, tokenizer, 9, pads=True)
    assert (trie.label_nodes >= 0).all()
    prefix_of = prefixes(trie)
    ids, ends = tokenizer.tokenize("日本")
    assert len(ids) > 4
    for position in range(10):
        length = ends[position] + 1 if position < 2 else len(ids) + position - 2
        assert prefix_of[int(trie.label_nodes[0, position])] == tuple([*ids, *[0] * 9][:length])


def test_number_of_nodes_by_hand(tokenizer: CharacterTokenizer) -> None:
    # c, ca, cat, cat$, car, car$ and d, do, dog, dog$
    assert build_trie(["cat", "car", "dog"], tokenizer, 25, pads=False).num_nodes == 10
    # and 22 pads for each of three labels
    assert build_trie(["cat", "car", "dog"], tokenizer, 25, pads=True).num_nodes == 10 + 3 * 22


def test_labels_that_tokenize_alike_share_everything(tokenizer: CharacterTokenizer) -> None:
    trie = build_trie(["Cat", "cat"], tokenizer, 5, pads=True)
    np.testing.assert_array_equal(trie.label_nodes[0], trie.label_nodes[1])
    assert trie.num_nodes == 6


def test_eot_positions_and_order(tokenizer: CharacterTokenizer) -> None:
    trie = build_trie(STRINGS, tokenizer, 9, pads=True)
    for row, string_idx in enumerate(trie.order):
        assert trie.tokens[row, trie.eot_position[row]] == 49407
        assert trie.eot_position[row] == len(STRINGS[string_idx]) + 1
