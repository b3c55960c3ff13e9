from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import draw_word, write_words

from clipocr.shared.charset import Charset
from clipocr.shared.errors import DataError
from clipocr.shared.images import ImageProblemError
from clipocr.train.evaluation.evaluate import SetResult, evaluate, read_images, total
from clipocr.train.evaluation.test_sets import open_test_sets
from clipocr.train.student import Student, StudentConfig
from clipocr.train.tokenizer import LabelTokenizer


def measure(
    student: Student, root: Path, charset: str = "36", batch_size: int = 512
) -> list[SetResult]:
    sets = open_test_sets([root], Charset.load(charset), student.config.max_label_length)
    return evaluate(student, sets, batch_size=batch_size)


class Oracle(Student):
    """Reads the red level of the picture, which `painted` makes the index of an answer.

    It stands in for a trained student so that every prediction of a test is known beforehand.
    """

    def __init__(self, answers: list[str], charset: str = "94") -> None:
        config = StudentConfig(
            width=8, patch_height_px=32, encoder_layers=4, encoder_heads=1, decoder_heads=1
        )
        super().__init__(config, LabelTokenizer(Charset.load(charset)))
        self.answers = answers
        self.eval()

    def decode(self, images: torch.Tensor, max_length: int | None = None) -> torch.Tensor:
        del max_length
        levels = ((images[:, 0, 16, 64] * 0.5 + 0.5) * 255).round().long().tolist()
        ids = self.tokenizer.encode([self.answers[level] for level in levels])[:, 1:]
        ids = ids.clamp(max=self.tokenizer.num_classes - 1)
        logits = torch.nn.functional.one_hot(ids, self.tokenizer.num_classes).float()
        return logits * 50  # Certain.


def painted(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 50, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_painted(path: Path, labels: list[str], broken: int | None = None) -> None:
    images = {i: painted(i - 1) for i in range(1, len(labels) + 1)}
    if broken:
        images[broken] = b"broken"
    write_words(path, labels, images)


def test_counts_by_hand(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["House", "tree", "Cat!", "???", "x" * 26, "dog"], broken=6)
    write_painted(tmp_path / "deep" / "B", ["house", "trees"])
    student = Oracle(["hOUSE", "trees", "cat", "any", "any", "dog"])
    a, b = measure(student, tmp_path)
    assert (a.name, b.name) == ("A", "deep/B")
    # House = hOUSE and Cat! = cat under charset 36; tree is not trees; dog cannot be decoded.
    assert (a.counts.num_samples, a.counts.num_correct) == (4, 2)
    assert (a.num_unlabelled, a.num_broken) == (2, 1)
    assert a.counts.sum_ned == pytest.approx(0 + 1 / 5 + 0 + 1)
    assert a.counts.figures.label_length == (5 + 5 + 3 + 0) / 4
    assert a.counts.figures.confidence == pytest.approx(75)
    assert (b.counts.num_samples, b.counts.num_correct) == (2, 2)
    assert total([a, b]).figures.accuracy == pytest.approx(100 * 4 / 6)


@pytest.mark.parametrize(("charset", "num_correct"), [("36", 3), ("62", 2), ("94", 1)])
def test_charset_is_applied_to_both_sides(tmp_path: Path, charset: str, num_correct: int) -> None:
    write_painted(tmp_path / "A", ["Abc", "a-bc", "a-bc"])
    student = Oracle(["aBC", "abc", "a-bc"])
    (result,) = measure(student, tmp_path, charset)
    assert result.counts.num_correct == num_correct


def test_batch_size_does_not_matter(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["a", "b", "c", "d", "e"], broken=2)
    results = [measure(Oracle(list("abxde")), tmp_path, batch_size=size) for size in (1, 2, 100)]
    assert results[0] == results[1] == results[2]
    assert results[0][0].counts.num_correct == 3


def test_a_set_the_charset_empties_is_named(tmp_path: Path) -> None:
    write_painted(tmp_path / "A", ["???"])
    with pytest.raises(DataError, match="no label is left under test charset 36"):
        measure(Oracle(["a"]), tmp_path)


def test_read_images_in_order_with_problems(tmp_path: Path) -> None:
    paths = []
    for name, content in (
        ("b.png", painted(1)),
        ("missing.png", None),
        ("a.png", painted(0)),
        ("note.txt", b"text"),
    ):
        paths.append(tmp_path / name)
        if content is not None:
            paths[-1].write_bytes(content)
    outcomes = list(read_images(Oracle(["zero", "one"]), paths, batch_size=3))
    assert [path for path, _ in outcomes] == paths
    texts = [o.text if not isinstance(o, ImageProblemError) else str(o) for _, o in outcomes]
    assert texts == ["one", "No such file or directory", "zero", "not an image"]
    first = outcomes[0][1]
    assert len(first.character_confidence) == 4  # o, n, e and EOS
    assert first.confidence == pytest.approx(1)


def test_a_real_student_reads_something(tmp_path: Path) -> None:
    write_words(tmp_path / "A", ["word"], {1: draw_word("word")})
    config = StudentConfig(
        width=32, patch_height_px=16, encoder_layers=4, encoder_heads=2, decoder_heads=2
    )
    student = Student(config, LabelTokenizer(Charset.load("36"))).eval()
    (result,) = measure(student, tmp_path)
    assert result.counts.num_samples == 1
