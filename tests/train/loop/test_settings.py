from __future__ import annotations

import click
import pytest
import torch

from clipocr.cli import main
from clipocr.shared.charset import Charset
from clipocr.shared.errors import UsageError
from clipocr.train.loop.config import TrainConfig
from clipocr.train.loop.settings import RECIPES, SETTING_NAMES, train_config
from clipocr.train.models.config import SIZES

CPU = torch.device("cpu")


def test_no_settings_are_the_defaults() -> None:
    assert train_config({}, CPU) == TrainConfig(charset=Charset.load("36"))


def test_each_name_reaches_its_place() -> None:
    config = train_config(
        {
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
        },
        CPU,
    )
    assert config.student.size == SIZES["tiny"]
    assert config.max_label_length == 20
    assert config.charset.name == "94"
    assert (config.method.image_stages, config.method.mask_pads) == ((1, 3), True)
    loss = config.method.loss
    assert (loss.kind, loss.intra_weight, loss.temperature, loss.gather) == ("l1", 3, 0.05, "all")
    assert (config.num_views, config.epochs, config.precision) == (2, 7, "bf16")


def test_a_charset_may_be_written_as_the_number_it_is_named() -> None:
    assert train_config({"charset": 94}, CPU).charset == Charset.load("94")


def test_a_recipe_gives_way_to_what_is_said() -> None:
    small = train_config({"recipe": "small-gpu"}, CPU)
    assert (small.batch_size, small.accumulate, small.precision) == (320, 8, "fp16")
    said = train_config({"recipe": "small-gpu", "accumulate": 4}, CPU)
    assert (said.accumulate, said.precision) == (4, "fp16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learningrate": 1},
            "unknown training setting 'learningrate'; expected some of accumulate",
        ),
        ({"epochs": "many"}, "epochs is 'many', expected a whole number"),
        ({"epochs": 2.5}, "epochs is 2.5, expected a whole number"),
        ({"epochs": True}, "epochs is True, expected a whole number"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3', expected a number"),
        ({"word": 1}, "word is 1, expected true or false"),
        ({"image_stages": "1,2"}, "image_stages is '1,2', expected a list of whole numbers"),
        ({"image_stages": [2, 1]}, r"image_stages is \(2, 1\), expected some of \(1, 2, 3\)"),
        ({"text_stages": [4]}, r"text_stages is \(4,\), expected some of \(1, 2, 3\)"),
        ({"views": "two"}, "views is 'two', expected a whole number"),
        ({"views": 2.5}, "views is 2.5, expected a whole number"),
        ({"max_label_length": "x"}, "max_label_length is 'x', expected a whole number"),
        ({"student": ["tiny"]}, r"student is \['tiny'\], expected one of tiny"),
        ({"image_taps": [3, 6, "9"]}, "expected a list of whole numbers"),
        ({"weight_decay": -1}, "weight_decay is -1, expected 0 or more"),
        ({"learning_rate": float("inf")}, "learning_rate is inf, expected more than 0"),
        ({"student": "huge"}, "student is 'huge', expected one of tiny, small, base"),
        ({"recipe": "mine"}, "recipe is 'mine', expected one of paper, small-gpu"),
        ({"loss": "mse"}, "'mse'"),
        ({"batch_size": 10, "accumulate": 3}, "batch_size 10 cannot be cut into 3 equal parts"),
        ({"precision": "int8"}, "precision is 'int8', expected one of fp32, bf16, fp16"),
    ],
)
def test_nonsense_is_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_config(settings, CPU)


def test_the_command_has_every_setting_with_its_default() -> None:
    options = {p.name: p for p in main.commands["train"].params if isinstance(p, click.Option)}
    assert set(SETTING_NAMES) <= set(options)
    context = main.commands["train"].make_context("train", ["--cache", "s3://b/c", "--out", "run"])
    shown = {name: context.params[name] for name in SETTING_NAMES if name != "views"}
    assert train_config(shown, CPU) == train_config({}, CPU)
    assert set(options["recipe"].type.choices) == set(RECIPES)
    assert set(options["student"].type.choices) == set(SIZES)
