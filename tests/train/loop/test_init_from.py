"""Fine-tuning: what a run takes of another student, and what it does not."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from devices import assert_repeats
from small_student import SMALL_STUDENT

from clipocr.shared.charset import Charset
from clipocr.shared.errors import UsageError
from clipocr.shared.interrupts import Interrupted
from clipocr.train.loop import optimizer as optimizer_module
from clipocr.train.loop.checkpoint import load_recogniser, save_checkpoint
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.run import train
from clipocr.train.methods.clip_ocr.settings import ClipOcr
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer

CPU = torch.device("cpu")
SIZE = SMALL_STUDENT
CONFIG = TrainConfig(
    method=ClipOcr(student=SIZE, image_taps=(1, 2, 3), text_taps=(1, 2, 3)),
    epochs=1,
    batch_size=16,
    precision="fp32",
    compile="off",
)


def student_of(characters: str, seed: int, **sizes: int) -> Student:
    torch.manual_seed(seed)
    charset = Charset(name="test", characters=characters)
    longest = sizes.pop("max_label_length", 25)
    config = replace(SIZE, size=replace(SIZE.size, **sizes))
    return Student(config, LabelTokenizer(charset, longest))


@pytest.fixture
def place(cache_path: Path, tmp_path: Path, device: str) -> TrainPlace:
    return TrainPlace(cache=cache_path, out=tmp_path / "run", device=device)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    path = tmp_path / "other.pt"
    tokenizer = LabelTokenizer(Charset.load("36"), 25)
    save_checkpoint(path, CONFIG.method, tokenizer, Student(SIZE, tokenizer))
    return path


def test_the_same_charset_takes_every_weight() -> None:
    other, student = student_of("abc", 1), student_of("abc", 2)
    assert student.take_from(other) == ""
    theirs = other.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in student.state_dict().items())


def test_characters_keep_their_weights_in_another_charset() -> None:
    other, student = student_of("abc", 1), student_of("xcba", 2)
    fresh = student_of("xcba", 2).state_dict()
    assert student.take_from(other) == "characters x"
    theirs, own = other.state_dict(), student.state_dict()
    # Ids of the other: EOS 0, a 1, b 2, c 3, BOS 4, PAD 5; of the student: x 1, c 2, b 3, a 4.
    for to, of in ((0, 0), (2, 3), (3, 2), (4, 1), (5, 4), (6, 5)):
        embedding = theirs["decoder.embedding.weight"]
        assert torch.equal(own["decoder.embedding.weight"][to], embedding[of])
    for to, of in ((0, 0), (2, 3), (3, 2), (4, 1)):
        assert torch.equal(own["decoder.head.weight"][to], theirs["decoder.head.weight"][of])
        assert own["decoder.head.bias"][to] == theirs["decoder.head.bias"][of]
    assert torch.equal(own["decoder.embedding.weight"][1], fresh["decoder.embedding.weight"][1])
    assert torch.equal(own["decoder.head.weight"][1], fresh["decoder.head.weight"][1])
    apart = {"decoder.embedding.weight", "decoder.head.weight", "decoder.head.bias"}
    assert all(torch.equal(own[name], theirs[name]) for name in own.keys() - apart)


def test_many_new_characters_are_not_all_listed() -> None:
    other, student = student_of("abc", 1), student_of(Charset.load("94").characters, 2)
    listed = Charset.load("94").characters.translate(str.maketrans("", "", "abc"))[:40]
    assert student.take_from(other) == f"characters {listed} and 51 others"


def test_longer_and_shorter_labels_keep_their_positions() -> None:
    other, longer = student_of("abc", 1), student_of("abc", 2, max_label_length=30)
    assert longer.take_from(other) == "label positions from 27 on"  # 25 characters and EOS.
    positions = longer.state_dict()["decoder.positions"]
    assert torch.equal(positions[:, :26], other.state_dict()["decoder.positions"])
    assert torch.equal(
        positions[:, 26:], student_of("abc", 2, max_label_length=30).decoder.positions[:, 26:]
    )
    shorter = student_of("abc", 3, max_label_length=4)
    assert shorter.take_from(other) == ""
    assert torch.equal(shorter.decoder.positions, other.decoder.positions[:, :5])


def test_another_size_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"width is 64, this run's 32.*pass the options"):
        student_of("abc", 1).take_from(student_of("abc", 1, width=64))


def test_a_run_begins_with_the_weights_and_says_so(
    place: TrainPlace, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A learning rate that moves nothing beyond rounding.
    train(replace(CONFIG, learning_rate=1e-12), place, init=checkpoint)
    assert f"Beginning with {checkpoint}.\n" in capsys.readouterr().err
    begun = load_recogniser(checkpoint, CPU).state_dict()
    for name, value in load_recogniser(place.out, CPU).state_dict().items():
        torch.testing.assert_close(value, begun[name], rtol=0, atol=1e-8)
    record = json.loads((place.out / "run.json").read_text())
    assert record["init"]["checkpoint"] == str(checkpoint)


def test_a_run_killed_at_its_first_step_resumes_from_them(
    place: TrainPlace, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(place, out=tmp_path / "whole")
    train(CONFIG, whole, init=checkpoint)

    def killed(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(optimizer_module, "one_cycle", killed)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, place, init=checkpoint)
    checkpoint.unlink()
    train(CONFIG, place, resume=True)
    left, right = (load_recogniser(p.out, CPU).state_dict() for p in (place, whole))
    for name in right:
        assert_repeats(left[name], right[name])
    records = [json.loads((p.out / "run.json").read_text()) for p in (place, whole)]
    assert records[0]["init"] == records[1]["init"]


def test_init_and_resume_exclude_each_other(place: TrainPlace, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="leave one of them out"):
        train(CONFIG, place, resume=True, init=checkpoint)


def test_a_run_begins_with_the_weights_of_its_encoder_and_resumes_without_their_file(
    place: TrainPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "encoder.pth"
    theirs = timm.create_model("test_vit", num_classes=0, img_size=(32, 128))
    torch.save(theirs.state_dict(), path)
    student = replace(SIZE, encoder="test_vit", encoder_weights=str(path))
    config = replace(CONFIG, method=replace(CONFIG.method, student=student), learning_rate=1e-12)
    one_cycle = optimizer_module.one_cycle

    def stopped(at: int, *rest: float) -> float:
        if at == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return one_cycle(at, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(optimizer_module, "one_cycle", stopped)
        with pytest.raises(Interrupted):
            train(config, place)
    path.unlink()
    train(config, place, resume=True)
    begun = theirs.state_dict()
    trained = load_recogniser(place.out, CPU).encoder.model.state_dict()
    for name, value in trained.items():
        torch.testing.assert_close(value, begun[name], rtol=0, atol=1e-8)
