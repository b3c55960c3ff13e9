from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipocr.shared.charset import Charset
from clipocr.shared.errors import CheckpointError
from clipocr.train.loop.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_student,
    save_checkpoint,
)
from clipocr.train.models.config import StudentConfig, StudentSize
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer

CONFIG = StudentConfig(
    size=StudentSize(
        width=32, patch_height_px=16, encoder_layers=4, encoder_heads=2, decoder_heads=2
    )
)


@pytest.fixture
def student() -> Student:
    return Student(CONFIG, LabelTokenizer(Charset.load("36"), 25)).eval()


def test_a_student_comes_back_whole(student: Student, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", student)
    loaded = load_student(tmp_path / "best.pt", torch.device("cpu"))
    images = torch.randn(2, 3, 32, 128, generator=torch.Generator().manual_seed(0))
    assert loaded.config == CONFIG
    assert not loaded.training
    assert torch.equal(loaded.decode(images), student.decode(images))


def test_best_is_meant_before_last(student: Student, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", student, {"step": 1})
    assert find_checkpoint(tmp_path).name == "last.pt"
    save_checkpoint(tmp_path / "best.pt", student)
    assert find_checkpoint(tmp_path).name == "best.pt"
    assert load_checkpoint(tmp_path / "last.pt")["training"] == {"step": 1}
    assert load_checkpoint(tmp_path / "best.pt")["training"] is None


def test_a_failed_write_keeps_the_old_one(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, student, {"step": 1})

    def full_disk(_content: object, file) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, student, {"step": 2})
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
    save_checkpoint(path, student)
    content = torch.load(path, weights_only=True)
    content["student"]["charset"] = vars(Charset.load("94"))
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"do not fit .* size mismatch for head.weight"):
        load_student(path, torch.device("cpu"))


def test_a_checkpoint_of_another_version_is_named(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save_checkpoint(path, student)
    content = torch.load(path, weights_only=True)
    del content["teacher"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="lacks teacher: another version"):
        load_checkpoint(path)
