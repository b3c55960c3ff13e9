"""Pictures against labels, held against open_clip's own encoders and numbers made by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from commands import invoke
from PIL import Image
from samples import TINY_TEACHER, WORDS, tiny_build, write_words

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.inspect.label_retrieval import (
    LabelRetrieval,
    PicturedWord,
    compare_words,
    retrieve_labels,
)
from clipocr.precompute.inspect.options import RetrievalOptions
from clipocr.precompute.teacher.clip import Teacher, load_teacher
from clipocr.shared.data.images import decode_image, stretch
from clipocr.shared.data.word_lmdb import WordLmdb
from clipocr.shared.errors import CacheMismatchError, DataError, TeacherError, UsageError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(TINY_TEACHER, image_taps=(1,), text_taps=(1,), precision="fp32", device=CPU)


def words_of(labels: tuple[str, ...]) -> list[PicturedWord]:
    rng = np.random.default_rng(0)
    return [
        PicturedWord(label=label, name=label, view=rng.integers(0, 256, (32, 128, 3), np.uint8))
        for label in labels
    ]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_cosines_are_those_of_clip_s_own_embeddings(teacher: Teacher) -> None:
    words = words_of(("antique", "bangkok", "signal"))
    by_char, by_word = compare_words(words, teacher)
    assert (by_char.tokens, by_word.tokens) == ("char", "word")
    # 'antique' spelled out and whole, padded to CLIP's full context.
    bpe = {"char": "a n t i q u e", "word": "antique"}
    tokenizer = open_clip.SimpleTokenizer()
    views = torch.from_numpy(np.stack([word.view for word in words]))
    pictures = teacher.image_embeddings(views).numpy()
    for retrieval in (by_char, by_word):
        with torch.no_grad():
            text = teacher._model.encode_text(tokenizer([bpe[retrieval.tokens]])).numpy()[0]
        for row, picture in enumerate(pictures):
            lengths = math.sqrt(float(picture @ picture)) * math.sqrt(float(text @ text))
            cosine = float(picture @ text) / lengths
            assert retrieval.cosines[row, 0] == pytest.approx(cosine, abs=1e-5)


def test_probabilities_are_one_softmax_over_both_kinds_of_label(teacher: Teacher) -> None:
    by_char, by_word = compare_words(words_of(("antique", "bangkok", "signal")), teacher)
    for row in range(3):
        cosines = [*by_char.cosines[row].tolist(), *by_word.cosines[row].tolist()]
        weights = [math.exp(cosine / 0.07) for cosine in cosines]  # CLIP's scale before training.
        expected = [weight / sum(weights) for weight in weights]
        have = [*by_char.probabilities[row].tolist(), *by_word.probabilities[row].tolist()]
        assert have == pytest.approx(expected, abs=1e-5)


def test_figures_of_a_matrix() -> None:
    cosines = np.array([[0.5, 0.1, 0.2], [0.3, 0.2, 0.1], [0.6, 0.0, 0.8]], np.float32)
    retrieval = LabelRetrieval(tokens="char", cosines=cosines, probabilities=cosines / 2)
    assert retrieval.figures == {
        "own label": pytest.approx(1.5 / 3),
        "other labels": pytest.approx(1.3 / 6),
        "picture to label %": pytest.approx(200 / 3),  # Row 1 is nearest to label 0.
        "label to picture %": pytest.approx(200 / 3),  # Label 0 is nearest to row 2.
        "own probability": pytest.approx(0.25),
    }


def test_chosen_words_and_what_a_blind_choice_would_find(cache_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "heat.png"
    result = invoke("cache", "align", cache_path, "--out", out, "--labels", "yankee,333,Bravo,kilo")
    assert result.exit_code == 0, result.output
    labels = [row["label"] for row in rows_of(tmp_path / "heat.csv")]
    assert labels[:4] == ["yankee", "333", "bravo", "kilo"]
    # One of four labels, and one of the eight that the softmax is over.
    (chance,) = [line for line in result.stdout.splitlines() if line.startswith("| chance")]
    assert [cell.strip() for cell in chance.split("|")[2:-1]] == ["", "", "25.0", "25.0", "0.1250"]


def test_a_cache_to_a_figure_and_a_table(cache_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "heat.png"
    arguments = ("cache", "align", cache_path, "--words", 5, "--seed", 3)
    result = invoke(*arguments, "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == f"Wrote {out} and {tmp_path / 'heat.csv'}: 5 words."
    assert "random weights" in result.stderr
    table = rows_of(tmp_path / "heat.csv")
    assert len(table) == 2 * 5 * 5
    own = [float(r["cosine"]) for r in table if r["picture_label"] == r["label"]]
    printed = [
        line.split("|")[2].strip() for line in lines if line.startswith(("| char", "| word"))
    ]
    assert printed == [f"{np.mean(own[:5]):.4f}", f"{np.mean(own[5:]):.4f}"]
    assert sum(float(r["probability"]) for r in table) == pytest.approx(5, abs=1e-4)
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        first = np.asarray(picture)
    again = tmp_path / "again.png"
    invoke(*arguments, "--out", again)
    with Image.open(again) as picture:
        np.testing.assert_array_equal(first, np.asarray(picture))


def test_pictures_are_those_of_the_source(tmp_path: Path, teacher: Teacher) -> None:
    data = tmp_path / "data"
    write_words(data / "words", WORDS[:4])
    build_cache(tiny_build(data, tmp_path / "words.cache"))
    options = RetrievalOptions(out=tmp_path / "a.png")
    lmdb = WordLmdb(data / "words")
    words = [
        PicturedWord(label=word, name=word, view=stretch(decode_image(lmdb.image(idx) or b"")))
        for idx, word in enumerate(WORDS[:4], start=1)
    ]
    of_pair = {
        (word.label, label.label, some.tokens): some.cosines[row, column]
        for some in compare_words(words, teacher)
        for row, word in enumerate(words)
        for column, label in enumerate(words)
    }
    retrieve_labels(tmp_path / "words.cache", options)
    table = rows_of(options.table)
    read = {(r["picture_label"], r["label"], r["tokens"]): float(r["cosine"]) for r in table}
    assert len(read) == 2 * 4 * 4
    assert read == pytest.approx(of_pair, abs=1e-5)


def test_every_word_once_whatever_its_case_and_no_broken_picture(tmp_path: Path) -> None:
    # CLIP's tokenizer lower-cases: 'Alpha' is 'alpha' to it, and retrieval would be a coin toss.
    # And "$" is no mathematics to the figure.
    labels = ["alp$ha$", "Alp$ha$", "bravo", "charlie", "", "x" * 26]
    write_words(tmp_path / "data" / "words", labels, images={3: b"not an image"})
    build_cache(tiny_build(tmp_path / "data", tmp_path / "cache"))
    options = RetrievalOptions(out=tmp_path / "a.png", words=6)
    retrievals, _ = retrieve_labels(tmp_path / "cache", options)
    assert retrievals[0].cosines.shape == (2, 2)
    table = rows_of(options.table)
    assert {row["label"].lower() for row in table} == {"alp$ha$", "charlie"}
    assert {row["picture"] for row in table} < {f"words/image-00000000{i}" for i in (1, 2, 4)}


def test_a_cache_is_read_with_its_own_teacher(cache_path: Path, tmp_path: Path) -> None:
    options = RetrievalOptions(out=tmp_path / "a.png", words=20)
    retrievals, _ = retrieve_labels(cache_path, options)
    assert retrievals[0].cosines.shape == (20, 20)
    sources = {row["picture"].rpartition("/")[0] for row in rows_of(options.table)}
    assert sources <= {"MJ/train", "ST"}
    other = TINY_TEACHER.replace("random:0", "random:1")
    options = RetrievalOptions(out=tmp_path / "b.png", teacher=other)
    with pytest.raises(CacheMismatchError, match="other weights"):
        retrieve_labels(cache_path, options)


def test_refusals(tmp_path: Path) -> None:
    write_words(tmp_path / "data" / "words", ["same", "same"])
    build_cache(tiny_build(tmp_path / "data", tmp_path / "cache"))
    options = RetrievalOptions(out=tmp_path / "a.png")
    with pytest.raises(DataError, match="1 words with labels that differ, expected 2"):
        retrieve_labels(tmp_path / "cache", options)
    with pytest.raises(UsageError, match=r"heat\.jpg is not a PNG; name it .*heat\.png"):
        RetrievalOptions(out=tmp_path / "heat.jpg")


def test_a_teacher_that_pools_otherwise_is_refused() -> None:
    other = load_teacher(
        TINY_TEACHER, image_taps=(1,), text_taps=(1,), precision="fp32", device=CPU
    )
    other._visual.pool_type = "avg"
    with pytest.raises(TeacherError, match="does not project its class token"):
        other.image_embeddings(torch.zeros(1, 32, 128, 3, dtype=torch.uint8))
