"""Table 13's words: what is kept of the labels they are made of, and what is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from commands import invoke
from samples import WORDS, write_words

from clipocr.precompute.data.nonwords import make_nonwords, usable_labels
from clipocr.precompute.data.options import NonwordOptions
from clipocr.shared.charset import Charset, LabelRules
from clipocr.shared.data.word_lmdb import WordLmdb
from clipocr.shared.errors import DataError

CHARSET = Charset.load("36")


def nonwords(labels: list[str], *, mode: str, count: int, seed: int = 0) -> list[str]:
    options = NonwordOptions.from_values({"mode": mode, "count": count, "seed": seed})
    return make_nonwords(labels, options)


def test_a_shuffle_keeps_the_characters_and_changes_the_word() -> None:
    labels = [f"{word}{i}" for word in ("listen", "no", "aab") for i in range(10)]
    shuffled = nonwords(labels, mode="shuffle", count=30, seed=1)
    assert Counter(map(_sorted, shuffled)) == Counter(map(_sorted, labels))
    assert not set(shuffled) & set(labels)


def _sorted(word: str) -> str:
    return "".join(sorted(word))


def test_a_word_that_has_no_other_order_stays() -> None:
    words = nonwords(["a", "oo", "ab"], mode="shuffle", count=3)
    assert sorted(words) == ["a", "ba", "oo"]


def test_random_words_have_lengths_of_labels_and_every_character_equally_often() -> None:
    labels = ["e" * (1 + i % 9) for i in range(9000)]
    words = nonwords(labels, mode="random", count=9000)
    assert Counter(map(len, words)) == dict.fromkeys(range(1, 10), 1000)
    counts = Counter("".join(words))
    assert sorted(counts) == sorted(CHARSET.characters)
    # 45,000 draws of 36: 1,250 each, standard deviation 34.9; five of them allowed.
    assert all(abs(n - 1250) < 175 for n in counts.values())


def test_every_label_is_drawn_once_at_most() -> None:
    labels = [f"{i:04}" for i in range(200)]
    words = nonwords(labels, mode="shuffle", count=150)
    assert not Counter(map(_sorted, words)) - Counter(map(_sorted, labels))
    with pytest.raises(DataError, match="201, but there are 200 usable labels; pass --count 200"):
        nonwords(labels, mode="random", count=201)


def test_labels_pass_the_rules_and_the_charset(tmp_path: Path) -> None:
    raw = ["Hello!", "x" * 26, "", "?!", "Ünder", "Ab 1"]
    root = write_words(tmp_path / "words", raw)
    assert usable_labels(root, CHARSET, LabelRules()) == ["hello", "under", "ab1"]
    assert usable_labels(root, Charset.load("62"), LabelRules(max_label_length=4)) == ["Ab1"]
    with pytest.raises(DataError, match="holds no label in charset none"):
        usable_labels(root, Charset(name="none", characters="~"), LabelRules())


def test_the_command_writes_the_same_words_and_bytes_again(tmp_path: Path) -> None:
    source = write_words(tmp_path / "words", WORDS)
    options = ["--count", "12", "--seed", "5", "--jobs", "1", "--style", "plain"]
    for out in ("a", "b"):
        result = invoke("data", "nonwords", source, tmp_path / out, "--mode", "shuffle", *options)
        assert result.exit_code == 0, result.output
    assert "12 samples (shuffle) of 30 labels" in result.stdout
    samples = list(WordLmdb(tmp_path / "a"))
    assert samples == list(WordLmdb(tmp_path / "b"))
    # They were drawn without regard to case and punctuation, as they will be judged.
    known = {_sorted(CHARSET.adapt(word)) for word in WORDS}
    words = [CHARSET.adapt(label or "") for _, _, label in samples]
    assert len(words) == 12
    assert {_sorted(word) for word in words} <= known
    assert not set(words) & {CHARSET.adapt(word) for word in WORDS if word != "333"}
