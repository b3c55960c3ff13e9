"""What a run writes for people: one line an epoch, a table, curves, TensorBoard's log."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import invoke
from PIL import Image
from samples import WORDS, write_words
from small_student import SMALL_RUN as CONFIG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipocr.shared import progress
from clipocr.shared.errors import UsageError
from clipocr.shared.progress import progress_bar
from clipocr.train.evaluation.metrics import WordCounts
from clipocr.train.loop import journal
from clipocr.train.loop.checkpoint import load_checkpoint
from clipocr.train.loop.config import TrainPlace
from clipocr.train.loop.run import train
from clipocr.train.loop.validation import PictureValidation, ValidationResult

LINE = re.compile(
    r"epoch (\d) of (\d): loss \d+\.\d{3} \(recognition .*, text_3 \d+\.\d{3}\); "
    r"read \d+\.\d %, 1-NED \d+\.\d \(MJ/train \d+\.\d %, \d+\.\d; ST \d+\.\d %, \d+\.\d\); "
    r"learning rate \d\.\d\de-\d\d; [\d,]+ samples/s; (.*)"
)


@pytest.fixture
def place(cache_path: Path, data_root: Path, tmp_path: Path) -> TrainPlace:
    return TrainPlace(cache=cache_path, out=tmp_path / "run", val_data=(data_root,), device="cpu")


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_epoch_is_a_line_and_a_row(
    place: TrainPlace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_DRAWS_AFTER_S", 0)
    train(CONFIG, place)
    said = [found for line in capsys.readouterr().err.splitlines() if (found := LINE.search(line))]
    assert [found.groups()[:2] for found in said] == [("1", "3"), ("2", "3"), ("3", "3")]
    assert said[0][3].endswith(" left")
    assert said[2][3] == "done"
    logged = (place.out / "log.txt").read_text()
    assert all(found[0] in logged for found in said)
    assert "Training on cpu in fp32 (as asked)." in logged
    history = json.loads((place.out / "run.json").read_text())["history"]
    for row, entry in zip(rows(place.out), history, strict=True):
        assert {name: float(row[name]) for name in entry} == entry
        assert float(row["samples_per_second"]) > 0
    assert [row["step"] for row in rows(place.out)] == ["5", "10", "15"]
    with Image.open(place.out / "curves.png") as picture:
        assert picture.width > 1000


def test_rows_of_epochs_that_are_done_over_are_replaced(place: TrainPlace) -> None:
    train(replace(CONFIG, epochs=2), place)
    before = rows(place.out)
    with (place.out / "metrics.csv").open("a") as file:
        file.write(",".join(["9"] * len(before[0])) + "\n")
    train(CONFIG, place, resume=True)
    assert rows(place.out)[:2] == before
    assert [row["epoch"] for row in rows(place.out)] == ["1", "2", "3"]


def test_tensorboard_has_the_settings_each_set_and_words(place: TrainPlace) -> None:
    train(replace(CONFIG, epochs=1), place)
    log = EventAccumulator(str(place.out)).Reload()
    tags = log.Tags()
    assert {"val/accuracy", "val/1-NED/ST", "loss/image_2", "train/learning_rate"} <= {
        *tags["scalars"]
    }
    assert tags["images"] == ["words"]
    plugins = [log.SummaryMetadata(tag).plugin_data.plugin_name for tag in tags["tensors"]]
    settings = {*log._plugin_to_tag_to_content.get("hparams", {}), *plugins}
    assert "_hparams_/session_start_info" in settings


def counts(num_correct: int, sum_ned: float) -> WordCounts:
    return WordCounts(num_samples=10, num_correct=num_correct, sum_ned=sum_ned)


@pytest.mark.parametrize(
    ("read", "best_epoch"),
    [
        ([(0, 9.0), (0, 8.0), (0, 8.5)], 2),  # Ties are broken by 1-NED,
        ([(3, 5.0), (3, 5.0), (2, 1.0)], 2),  # then the later epoch counts.
        ([(5, 5.0), (3, 1.0), (4, 1.0)], 1),
    ],
)
def test_best_is_the_most_accurate_then_the_nearest_then_the_latest(
    place: TrainPlace,
    monkeypatch: pytest.MonkeyPatch,
    read: list[tuple[int, float]],
    best_epoch: int,
) -> None:
    results = iter(read)
    monkeypatch.setattr(
        PictureValidation,
        "_read",
        lambda *_: ValidationResult(of_sets={"set": counts(*next(results))}),
    )
    train(CONFIG, place)
    best, last = (load_checkpoint(place.out / name)["reached"] for name in ("best.pt", "last.pt"))
    num_correct, sum_ned = read[best_epoch - 1]
    assert best == {
        "step": 5 * best_epoch,
        "epoch": best_epoch,
        "epochs": 3,
        "accuracy": 10 * num_correct,
        "1-NED": pytest.approx(100 - 10 * sum_ned),
    }
    assert (last["step"], last["epoch"], last["accuracy"]) == (15, 3, 10 * read[2][0])
    assert json.loads((place.out / "run.json").read_text())["best"] == best


def test_a_run_goes_on_with_the_options_it_has_wherever_that_is_typed(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_words(tmp_path / "val", WORDS[:4])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.cache").symlink_to(cache_path)
    begun = invoke(
        *("train", "--cache", "words.cache", "--out", "run", "--val-data", "val"),
        *("--student", "tiny", "--image-taps", "1,2,3", "--text-taps", "1,2,3", "--device", "cpu"),
        *("--batch-size", 24, "--epochs", 1, "--loss", "kl"),
    )
    assert begun.exit_code == 0, begun.output
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "run").rename(tmp_path / "moved")
    went_on = invoke("train", "--resume", tmp_path / "moved", "--epochs", 2)
    assert went_on.exit_code == 0, went_on.output
    assert "Note: 2 epochs instead of 1." in went_on.stderr
    # As it would be if the record were lost.
    (tmp_path / "moved/run.json").unlink()
    assert "finished already" in invoke("train", "--resume", tmp_path / "moved").stdout

    like = invoke(
        *("train", "--config", tmp_path / "moved/run.json", "--out", tmp_path / "like"),
        *("--method", "clip-ocr", "--epochs", 1),
    )
    assert like.exit_code == 0, like.output
    one, other = (
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("moved", "like")
    )
    assert {name: value for name, value in one["config"].items() if name != "epochs"} == {
        name: value for name, value in other["config"].items() if name != "epochs"
    }
    assert one["place"] == other["place"]
    assert other["config"]["epochs"] == 1
    assert other["place"]["val_data"] == [str(tmp_path / "val")]


def test_progress_is_lines_in_a_log_and_none_of_what_is_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 25))  # 25 s an item.
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress_bar(range(2), desc="check", unit="image")) == [0, 1]
    assert capsys.readouterr().err == ""
    with progress_bar(total=6, desc="train", unit="step") as bar:
        for _ in range(6):
            bar.set_postfix(loss="1.5")
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "train: 3 of 6, 25.00s/step, 01:15 left, loss 1.5",
        "train: 6 of 6, 25.00s/step, 00:00 left, loss 1.5",
    ]
    assert not sys.stderr.isatty()


def test_weights_and_biases_follows_tensorboard_or_is_named_as_missing(
    place: TrainPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[dict[str, object]] = []

    @contextmanager
    def init(**about: object) -> Iterator[None]:
        # Before TensorBoard's writer is made: it is what wandb has to catch.
        assert not list(place.out.glob("events*"))
        began.append(about)
        yield

    place = replace(place, wandb="words", val_data=())
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "wandb", None)
        with pytest.raises(UsageError, match=r"pip install 'clipocr-str\[wandb\]'"):
            train(CONFIG, place)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    train(replace(CONFIG, epochs=1), place)
    (about,) = began
    assert (about["project"], about["name"], about["sync_tensorboard"]) == ("words", "run", True)
    assert about["config"]["batch_size"] == 16
