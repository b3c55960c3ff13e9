"""Text tables added to a finished cache: exact, beside the rest, and never of another teacher."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from loading import loader_of, needing
from samples import TINY_TEACHER, WORDS, files_of, tiny_build, write_words

from clipocr.cli import main
from clipocr.precompute.builder import text
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.builder.config import TextConfig
from clipocr.precompute.builder.text import add_text_table
from clipocr.precompute.teacher.clip import load_teacher
from clipocr.precompute.teacher.tokens import TeacherTokenizer, build_trie
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset, LabelRules
from clipocr.shared.errors import CacheMismatchError, DataError, UsageError

SOT, EOT = 49406, 49407


@pytest.fixture(scope="module")
def words() -> TeacherTokenizer:
    return TeacherTokenizer("word", 25)


@pytest.fixture
def own_cache(cache_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(cache_path, tmp_path / "own.cache")
    return tmp_path / "own.cache"


@pytest.fixture(scope="module")
def word_cache(cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("word") / "word.cache"
    shutil.copytree(cache_path, path)
    add_text_table(TextConfig(cache=path, charset=Charset.load("36"), tokenizer="word"))
    return path


def teacher(name: str = TINY_TEACHER):
    return load_teacher(
        name,
        image_taps=(1, 2, 3),
        text_taps=(1, 2, 3),
        precision="fp32",
        device=torch.device("cpu"),
    )


def test_an_added_charset_is_the_one_a_build_would_have_made(
    own_cache: Path, data_root: Path
) -> None:
    before = files_of(own_cache)
    *_, was_there = add_text_table(TextConfig(cache=own_cache, charset=Charset.load("94")))
    assert not was_there
    added = files_of(own_cache)
    changed = {n for n in added if added[n] != before.get(n)}
    assert "sealed.json" in changed
    assert all(n.startswith(("text/char-94/", "commits/text/char-94")) for n in changed
               if n != "sealed.json")  # fmt: skip

    shutil.rmtree(own_cache / "text/char-94")
    (own_cache / "commits/text/char-94.json").unlink()
    (own_cache / "sealed.json").unlink()
    build_cache(tiny_build(data_root, own_cache, charset=Charset.load("94")))
    assert files_of(own_cache) == added


def test_what_is_there_is_left_and_the_teacher_not_loaded(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "load_teacher", None)
    before = files_of(own_cache)
    *_, was_there = add_text_table(TextConfig(cache=own_cache, charset=Charset.load("36")))
    assert was_there
    assert files_of(own_cache) == before


def test_a_table_that_missed_its_seal_is_sealed(own_cache: Path) -> None:
    seal = (own_cache / "sealed.json").read_bytes()
    charset = Charset.load("62")
    add_text_table(TextConfig(cache=own_cache, charset=charset))
    (own_cache / "sealed.json").write_bytes(seal)  # As if killed in between.
    assert not FeatureCache.open(own_cache).committed.texts.keys() & {"char-62"}
    add_text_table(TextConfig(cache=own_cache, charset=charset))
    assert FeatureCache.open(own_cache).require_text(charset, 25).name == "char-62"


def test_a_half_built_cache_takes_a_table_and_stays_half_built(own_cache: Path) -> None:
    (own_cache / "sealed.json").unlink()
    (own_cache / "commits/view0/unit-00001.json").unlink()
    add_text_table(TextConfig(cache=own_cache, charset=Charset.load("94")))
    cache = FeatureCache.open(own_cache)
    assert not cache.is_sealed
    assert [spec.name for spec in cache.text_specs()] == ["char-36", "char-94"]


def test_a_table_that_is_stopped_goes_on_with_its_parts(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a part of it was damaged meanwhile."""
    whole = own_cache.with_name("whole.cache")
    shutil.copytree(own_cache, whole)
    config = TextConfig(cache=own_cache, charset=Charset.load("94"))
    add_text_table(replace(config, cache=whole))
    monkeypatch.setattr(text, "_PART_BATCHES", 1)
    encode, encoded = text._encode_part, []

    def stopping(*args: object) -> object:
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(args[-1])
        return encode(*args)

    monkeypatch.setattr(text, "_encode_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        add_text_table(config)
    parts = sorted((own_cache / ".tmp/text/char-94").iterdir())
    assert len(parts) == 3
    damaged = bytearray(parts[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    parts[1].write_bytes(damaged)
    cut, damaged_one = encoded[2], encoded[1]
    encoded.clear()
    monkeypatch.setattr(
        text, "_encode_part", lambda *args: encoded.append(args[-1]) or encode(*args)
    )
    add_text_table(config)
    assert encoded[0] == damaged_one
    assert encoded[1].start == cut.stop
    assert files_of(own_cache) == files_of(whole)


def test_other_weights_are_refused_by_name(own_cache: Path) -> None:
    config = TextConfig(
        cache=own_cache, charset=Charset.load("94"), teacher="ViT-tiny-test/random:1"
    )
    said = r"ViT-tiny-test/random:0 says \(weights sha256 .*ViT-tiny-test/random:1 has other"
    before = files_of(own_cache)
    with pytest.raises(CacheMismatchError, match=said):
        add_text_table(config)
    assert files_of(own_cache) == before


def test_a_weights_file_must_be_passed_and_may_have_moved(tmp_path: Path) -> None:
    write_words(tmp_path / "data" / "set", WORDS[:4])
    weights = tmp_path / "clip.pt"
    torch.save(teacher()._model.state_dict(), weights)
    cache = tmp_path / "cache"
    name = f"ViT-tiny-test/{weights}"
    build_cache(tiny_build(tmp_path / "data", cache, teacher=name, activation="gelu"))
    charset = Charset.load("94")
    with pytest.raises(UsageError, match=r"weights file clip.pt; pass it by --teacher"):
        add_text_table(TextConfig(cache=cache, charset=charset))
    moved = weights.rename(tmp_path / "moved.pt")
    moved_name = f"ViT-tiny-test/{moved}"
    add_text_table(TextConfig(cache=cache, charset=charset, teacher=moved_name))
    assert sorted(FeatureCache.open(cache).text_table("char-94").strings) == WORDS[:4]


def test_a_charset_of_the_same_name_and_other_characters_is_refused(own_cache: Path) -> None:
    with pytest.raises(CacheMismatchError, match="rename the charset file"):
        add_text_table(TextConfig(cache=own_cache, charset=Charset(name="36", characters="ab")))
    with pytest.raises(DataError, match="charset hiragana leaves nothing"):
        add_text_table(
            TextConfig(cache=own_cache, charset=Charset(name="hiragana", characters="あ"))
        )
    with pytest.raises(UsageError, match="tokenizer is 'bpe', expected one of char, word"):
        TextConfig(cache=own_cache, charset=Charset.load("36"), tokenizer="bpe")


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("analysis", [5296]),
        ("Analysis", [5296]),  # CLIP's tokenizer lower-cases.
        ("a", [320]),
        ("&nbsp;", []),  # ... and unescapes HTML: nothing is left of it.
    ],
)
def test_a_label_is_what_clip_makes_of_it(
    words: TeacherTokenizer, label: str, expected: list[int]
) -> None:
    sequence = words.tokenize(label)
    assert sequence.ids == [SOT, *expected, EOT]
    assert sequence.read == list(range(1, 27))
    assert sequence.eot_position == len(expected) + 1


def test_ascii_labels_never_have_more_tokens_than_characters(words: TeacherTokenizer) -> None:
    rng = np.random.default_rng(0)
    characters = np.array(list(Charset.load("94").characters))
    for _ in range(500):
        label = "".join(rng.choice(characters, rng.integers(1, 26)))
        assert len(words.tokenize(label).ids) - 2 <= len(label)


def test_positions_see_tokens_then_eot_then_pads() -> None:
    labels, words = ["analysis", "zulu7", "cat"], TeacherTokenizer("word", 9)
    trie = build_trie(labels, words)
    prefix_of = {
        int(n): tuple(trie.tokens[r, : c + 1].tolist())
        for r, c in zip(*np.nonzero(trie.is_new), strict=True)
        for n in [trie.prefix[r, c]]
    }
    for label, nodes in zip(labels, trie.nodes, strict=True):
        sequence = [*words.tokenize(label).ids, *[0] * 11][:11]
        for position in range(10):
            assert prefix_of[int(nodes[position])] == tuple(sequence[: position + 2])


def test_word_features_are_what_the_official_code_would_align(
    word_cache: Path, words: TeacherTokenizer
) -> None:
    cache = FeatureCache.open(word_cache)
    spec = cache.require_text(Charset.load("36"), 25, "word")
    assert (spec.name, spec.tokenizer) == ("word-36", "word")
    table = cache.text_table("word-36")
    assert table.strings == cache.text_table("char-36").strings
    tiny = teacher()
    for text_idx, label in enumerate(table.strings):
        ids = words.tokenize(label).ids
        tokens = torch.zeros(1, 27, dtype=torch.int32)
        tokens[0, : len(ids)] = torch.tensor(ids)
        features = tiny.text_features(tokens, torch.tensor([len(ids) - 1]))
        eot = features.pop("eot")
        for array, expected in features.items():
            stored = table.arrays[array][table.nodes[text_idx]]
            np.testing.assert_allclose(stored, expected[0, 1:], rtol=2**-10, atol=1e-4)
        np.testing.assert_allclose(table.arrays["eot"][text_idx], eot[0], rtol=2**-10, atol=1e-4)


def test_batches_hold_the_words_position_by_position(word_cache: Path) -> None:
    cache = FeatureCache.open(word_cache)
    table = cache.text_table("word-36")
    loader = loader_of(cache, needing(("block1",), ("block2",), "word"), batch_size=8)
    batch = next(loader.epoch(0))
    assert batch.text["block2"].shape[1] == max(map(len, batch.labels)) + 1
    for label, features in zip(batch.labels, batch.text["block2"], strict=True):
        nodes = table.nodes[table.strings.index(label), : len(features)]
        np.testing.assert_array_equal(features, table.arrays["block2"][nodes])


def test_words_of_more_tokens_than_the_label_has_positions_are_left_out(tmp_path: Path) -> None:
    # Each of these characters is more than one token.
    labels = ["日本", "龘龘龘龘", "ab"]
    write_words(tmp_path / "data" / "set", labels)
    charset = Charset(name="mixed", characters="日本龘ab")
    rules = LabelRules(keep_unicode=True, max_label_length=4)
    build_cache(tiny_build(tmp_path / "data", tmp_path / "cache", charset=charset, labels=rules))
    add_text_table(TextConfig(cache=tmp_path / "cache", charset=charset, tokenizer="word"))
    cache = FeatureCache.open(tmp_path / "cache")
    kept = [label for label in labels if TeacherTokenizer("word", 4).tokenize(label)]
    assert "龘龘龘龘" not in kept
    assert sorted(cache.text_table("word-mixed").strings) == sorted(kept)


# -- commands --------------------------------------------------------------------------------------


def test_commands_add_words_and_train_on_them(own_cache: Path, tmp_path: Path) -> None:
    def invoke(*args: object):
        return CliRunner().invoke(main, list(map(str, args)))

    train = ("train", "--cache", own_cache, "--out", tmp_path / "run", "--student", "tiny",
             "--image-taps", "1,2,3", "--text-taps", "1,2,3", "--epochs", 1, "--batch-size", 40,
             "--tokenizer", "word", "--device", "cpu")  # fmt: skip
    refused = invoke(*train)
    assert refused.exit_code == 1
    assert (
        "has text for charset 36 (36 characters, tokenizer char), this run needs" in refused.stderr
    )
    assert refused.stderr.endswith(f"cache text {own_cache} --charset 36 --tokenizer word\n")

    result = invoke("cache", "text", own_cache, "--charset", 36, "--tokenizer", "word")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"Wrote {own_cache}/text/word-36: 30 labels, ")
    again = invoke("cache", "text", own_cache, "--charset", 36, "--tokenizer", "word")
    assert again.stdout.startswith("Found ")
    assert again.stdout.endswith("; nothing was missing.\n")
    assert invoke(*train).exit_code == 0
