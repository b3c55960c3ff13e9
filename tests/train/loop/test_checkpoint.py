from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_student import SMALL_STUDENT

from clipocr.shared.charset import Charset
from clipocr.shared.clip.weights import load_weights
from clipocr.shared.errors import CheckpointError, TeacherError
from clipocr.train.loop.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_recogniser,
    save_checkpoint,
)
from clipocr.train.methods.clip_ocr.settings import ClipOcr
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer

METHOD = ClipOcr(student=SMALL_STUDENT)
TOKENIZER = LabelTokenizer(Charset.load("36"), 25)


def save(path: Path, student: Student, training: dict[str, int] | None = None) -> None:
    save_checkpoint(path, METHOD, TOKENIZER, student, training)


@pytest.fixture
def student() -> Student:
    return METHOD.recogniser(TOKENIZER).eval()


def test_a_student_comes_back_whole(student: Student, tmp_path: Path) -> None:
    save(tmp_path / "best.pt", student)
    loaded = load_recogniser(tmp_path / "best.pt", torch.device("cpu"))
    images = torch.randn(2, 3, 32, 128, generator=torch.Generator().manual_seed(0))
    assert loaded.config == METHOD.student
    assert not loaded.training
    assert torch.equal(loaded.decode(images), student.decode(images))


def test_best_is_meant_before_last(student: Student, tmp_path: Path) -> None:
    save(tmp_path / "last.pt", student, {"step": 1})
    assert find_checkpoint(tmp_path).name == "last.pt"
    save(tmp_path / "best.pt", student)
    assert find_checkpoint(tmp_path).name == "best.pt"
    assert load_checkpoint(tmp_path / "last.pt")["training"] == {"step": 1}
    assert load_checkpoint(tmp_path / "best.pt")["training"] is None


def test_a_failed_write_keeps_the_old_one(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save(path, student, {"step": 1})

    def full_disk(_content: object, file) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(path, student, {"step": 2})
    assert load_checkpoint(path)["training"] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a checkpoint nor a run.*clipocr train"):
        find_checkpoint(tmp_path)
    path = tmp_path / "some.pt"
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"some\.pt cannot be read as a checkpoint"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match=r"some\.pt is not a clipocr checkpoint"):
        load_checkpoint(path)
    torch.save(Charset.load("36"), path)  # An object: refused by weights_only.
    with pytest.raises(CheckpointError, match=r"some\.pt cannot be read"):
        load_checkpoint(path)


def test_weights_of_another_charset_are_named(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save(path, student)
    content = torch.load(path, weights_only=True)
    content["charset"] = vars(Charset.load("94"))
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"do not fit .* size mismatch for decoder.head.weight"
    ):
        load_recogniser(path, torch.device("cpu"))


def test_a_checkpoint_of_another_version_is_named(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save(path, student)
    content = torch.load(path, weights_only=True)
    del content["teacher"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="lacks teacher: another version"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("recogniser", None, r"holds nothing that reads images: its method, clip-ocr, only pre-tr"),
        ("method", "gone", r"method is 'gone', expected one of clip-ocr.*Install the package"),
        ("settings", {"width": 3}, r"unknown setting 'width'.*use the version"),
    ],
)
def test_what_cannot_be_rebuilt_is_named(
    student: Student, tmp_path: Path, part: str, value: object, said: str
) -> None:
    path = tmp_path / "best.pt"
    save(path, student)
    content = torch.load(path, weights_only=True)
    torch.save(content | {part: value}, path)
    with pytest.raises(CheckpointError, match=said):
        load_recogniser(path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "it is a web page"),
    ],
)
@pytest.mark.parametrize("name", ["best.pt", "model.safetensors"])
def test_what_stands_in_a_checkpoint_s_place_is_named(
    content: bytes, said: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as failed:
        load_checkpoint(tmp_path / name)
    assert "weights_only" not in str(failed.value)
    with pytest.raises(TeacherError, match=said) as failed:
        load_weights(f"ViT-B-32/{tmp_path / name}", "fp32", "gelu")
    assert "weights_only" not in str(failed.value)
