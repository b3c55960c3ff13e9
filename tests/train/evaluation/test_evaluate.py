from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle import Oracle, painted, write_painted
from samples import draw_word, write_words
from small_student import SMALL_STUDENT

from clipocr.shared.charset import Charset
from clipocr.shared.errors import DataError
from clipocr.train.evaluation.evaluate import evaluate_charsets, evaluate_sets
from clipocr.train.evaluation.metrics import WordCounts
from clipocr.train.evaluation.results import Evaluation
from clipocr.train.evaluation.test_sets import open_test_sets
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer
from clipocr.train.reading.readers import Reader, Text


def measure(student: Student, root: Path, charset: str = "36", batch_size: int = 512) -> Evaluation:
    sets = open_test_sets([root], Charset.load(charset), student.tokenizer.max_label_length)
    return evaluate_sets(Reader(student, batch_size=batch_size), sets)


def test_counts_by_hand(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["House", "tree", "Cat!", "???", "x" * 26, "dog"], broken=6)
    write_painted(tmp_path / "deep" / "B", ["house", "trees"])
    student = Oracle(["hOUSE", "trees", "cat", "any", "any", "dog"])
    evaluation = measure(student, tmp_path)
    a, b = evaluation.sets
    assert (a.name, b.name) == ("A", "deep/B")
    # House = hOUSE and Cat! = cat under charset 36; tree is not trees; dog cannot be decoded.
    assert (a.counts.num_samples, a.counts.num_correct) == (4, 2)
    assert (a.test_set.num_unlabelled, a.num_broken) == (2, 1)
    assert a.counts.sum_ned == pytest.approx(0 + 1 / 5 + 0 + 1)
    assert a.counts.figures.label_length == (5 + 5 + 3 + 0) / 4
    assert a.counts.figures.confidence == pytest.approx(75)
    assert (b.counts.num_samples, b.counts.num_correct) == (2, 2)
    assert evaluation.counts.figures.accuracy == pytest.approx(100 * 4 / 6)


@pytest.mark.parametrize(("charset", "num_correct"), [("36", 3), ("62", 2), ("94", 1)])
def test_charset_is_applied_to_both_sides(tmp_path: Path, charset: str, num_correct: int) -> None:
    write_painted(tmp_path / "A", ["Abc", "a-bc", "a-bc"])
    student = Oracle(["aBC", "abc", "a-bc"])
    (result,) = measure(student, tmp_path, charset).sets
    assert result.counts.num_correct == num_correct


def test_several_charsets_are_scored_of_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_painted(tmp_path / "A", ["Abc", "a-bc", "a-bc", "!!"])
    write_painted(tmp_path / "B", ["??"])  # Has no label but under 94.
    read: list[int] = []
    real = Reader.read_views

    def read_views(self: Reader, views: torch.Tensor) -> list[Text]:
        read.append(len(views))
        return real(self, views)

    monkeypatch.setattr(Reader, "read_views", read_views)
    reader = Reader(Oracle(["aBC", "abc", "a-bc", "!"]))
    charsets = [Charset.load(name) for name in ("36", "62", "94")]
    evaluations = evaluate_charsets(
        reader, [open_test_sets([tmp_path], charset, 25) for charset in charsets]
    )
    assert read == [4, 1]
    assert [each.charset for each in evaluations] == charsets
    counts = [(each.counts.num_samples, each.counts.num_correct) for each in evaluations]
    # As in the test above, and under 94 two more words, which are read as "!" and "aBC".
    assert counts == [(3, 3), (3, 2), (5, 1)]
    assert [len(each.sets) for each in evaluations] == [1, 1, 2]
    for charset, evaluation in zip(charsets, evaluations, strict=True):
        assert measure(reader.recogniser, tmp_path, charset.name).words == evaluation.words


def test_batch_size_does_not_matter(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["a", "b", "c", "d", "e"], broken=2)
    results = [measure(Oracle(list("abxde")), tmp_path, batch_size=size) for size in (1, 2, 100)]
    assert results[0].words == results[1].words == results[2].words
    assert results[0].counts.num_correct == 3


def test_a_set_the_charset_empties_is_named(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["???"])
    with pytest.raises(DataError, match="no label is left under test charset 36"):
        measure(Oracle(["a"]), tmp_path)


def test_a_real_student_reads_something(tmp_path: Path) -> None:
    write_words(tmp_path / "A", ["word"], {1: draw_word("word")})
    config = SMALL_STUDENT
    student = Student(config, LabelTokenizer(Charset.load("36"), 25)).eval()
    assert measure(student, tmp_path).counts.num_samples == 1


def test_every_word_is_kept(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["Cat!", "???", "dog", "Y"], broken=3)
    cat, dog, long = measure(Oracle(["cAt", "any", "dog", "x" * 25]), tmp_path).words
    assert (cat.image, cat.label, cat.adapted_label) == (1, "Cat!", "cat")
    assert (cat.text, cat.adapted_text, cat.is_correct) == ("cAt", "cat", True)
    assert len(cat.character_confidence) == 4  # c, A, t and EOS
    assert (dog.image, dog.text, dog.problem, dog.is_correct) == (3, "", "not an image", False)
    assert (dog.character_confidence, dog.confidence) == ((), 0)
    # All positions are decoded, however short the label is.
    assert (long.image, long.adapted_text, long.is_correct) == (4, "x" * 25, False)
    (test_set,) = open_test_sets([tmp_path], Charset.load("36"), 25)
    assert test_set.image(cat.image) == painted(0)


def test_shares_make_a_whole(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["a", "b", "c", "d", "e"])
    reader = Reader(Oracle(list("abxdy")))
    (test_set,) = open_test_sets([tmp_path], Charset.load("36"), 25)
    shares = [evaluate_sets(reader, [test_set.share(rank, 2)]) for rank in range(2)]
    assert [len(share.words) for share in shares] == [3, 2]
    whole = evaluate_sets(reader, [test_set])
    assert sum((share.counts for share in shares), WordCounts()) == whole.counts
