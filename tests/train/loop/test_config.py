"""Options of a run, as the command line, tables and ``run.json`` write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipocr.shared.charset import Charset
from clipocr.shared.errors import UsageError
from clipocr.train.loop.config import TrainConfig
from clipocr.train.methods.clip_ocr.settings import ClipOcr


def test_no_values_are_the_defaults() -> None:
    assert TrainConfig.from_values({}) == TrainConfig(method=ClipOcr())


def test_values_are_flat_and_come_back() -> None:
    given = {
        "method": "clip-ocr",
        "student": "tiny",
        "max_label_length": 20,
        "charset": "94",
        "image_stages": [1, 3],
        "mask_pads": True,
        "loss": "l1",
        "intra_weight": 3,
        "temperature": 0.05,
        "gather": "all",
        "views": 2,
        "epochs": 7,
        "precision": "bf16",
    }
    config = TrainConfig.from_values(given)
    assert config.method.student == ClipOcr.from_values({"student": "tiny"}).student
    assert (config.charset.name, config.max_label_length) == ("94", 20)
    assert (config.method.image_stages, config.method.mask_pads) == ((1, 3), True)
    loss = config.method.loss
    assert (loss.kind, loss.intra_weight, loss.temperature, loss.gather) == ("l1", 3, 0.05, "all")
    assert (config.views, config.epochs, config.precision) == (2, 7, "bf16")
    assert TrainConfig.from_values(json.loads(json.dumps(config.to_values()))) == config


def test_a_charset_may_be_a_number_or_a_file(tmp_path: Path) -> None:
    assert TrainConfig.from_values({"charset": 94}).charset == Charset.load("94")
    (tmp_path / "digits.txt").write_text("0123456789")
    config = TrainConfig.from_values({"charset": str(tmp_path / "digits.txt")})
    assert config.charset == Charset(name="digits", characters="0123456789")
    # The record keeps the characters: the file may change.
    (tmp_path / "digits.txt").unlink()
    assert TrainConfig.from_values(config.to_values()) == config


def test_a_recipe_gives_way_to_what_is_said() -> None:
    small = TrainConfig.from_values({"recipe": "small-gpu"})
    assert (small.batch_size, small.accumulate, small.precision) == (320, 8, "fp16")
    said = TrainConfig.from_values({"recipe": "small-gpu", "accumulate": 4})
    assert (said.accumulate, said.precision) == (4, "fp16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learningrate": 1},
            "unknown setting 'learningrate'; expected some of accumulate.*, image_taps,.*, method,",
        ),
        ({"epochs": "many"}, "epochs is 'many', expected a whole number"),
        ({"epochs": 2.5}, "epochs is 2.5, expected a whole number"),
        ({"epochs": True}, "epochs is True, expected a whole number"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3', expected a number"),
        ({"word": 1}, "word is 1, expected true or false"),
        ({"image_stages": "1,2"}, "image_stages is '1,2', expected a list, each a whole number"),
        ({"image_stages": [2, 1]}, r"image_stages is \(2, 1\), expected some of \(1, 2, 3\)"),
        ({"text_stages": [4]}, r"text_stages is \(4,\), expected some of \(1, 2, 3\)"),
        ({"views": "two"}, "views is 'two', expected a whole number"),
        ({"charset": 3.5}, "charset '3.5' is neither"),
        ({"method": "mine"}, "method is 'mine', expected one of clip-ocr"),
        ({"views": 2.5}, "views is 2.5, expected a whole number"),
        ({"max_label_length": "x"}, "max_label_length is 'x', expected a whole number"),
        ({"student": ["tiny"]}, r"student is \['tiny'\], expected one of tiny"),
        ({"image_taps": [3, 6, "9"]}, "expected a list, each a whole number"),
        ({"weight_decay": -1}, "weight_decay is -1, expected a number from 0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf, expected a number above 0"),
        ({"student": "huge"}, "student is 'huge', expected one of tiny, small, base"),
        ({"recipe": "mine"}, "recipe is 'mine', expected one of paper, small-gpu"),
        ({"loss": "mse"}, "'mse'"),
        ({"batch_size": 10, "accumulate": 3}, "batch_size 10 cannot be cut into 3 equal parts"),
        ({"precision": "int8"}, "precision is 'int8', expected one of auto, fp32, bf16, fp16"),
    ],
)
def test_nonsense_is_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_values(settings)
