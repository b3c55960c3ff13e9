"""A student's config: what it refuses, and how it travels."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from clipocr.shared.errors import UsageError
from clipocr.train.models.config import SIZES, StudentConfig, StudentSize


@pytest.mark.parametrize(
    "config",
    [
        StudentConfig(),
        StudentConfig(size=StudentSize(width=96, encoder_heads=3, dropout=0.0)),
        StudentConfig(size=SIZES["tiny"], encoder="convnext_tiny", encoder_weights="timm"),
    ],
)
def test_a_config_survives_json(config: StudentConfig) -> None:
    assert StudentConfig.from_values(json.loads(json.dumps(config.to_values()))) == config


def test_a_presets_name_is_a_size() -> None:
    assert StudentConfig.from_values({"student": "tiny"}) == StudentConfig(size=SIZES["tiny"])


def test_a_size_names_every_problem() -> None:
    with pytest.raises(UsageError) as e:
        StudentSize(encoder_layers=6, patch_width_px=7, decoder_heads=5, dropout=1.0)
    for problem in (
        "number of stages 4 does not divide encoder_layers 6",
        "patch_width_px 7 does not divide image width 128",
        "decoder_heads 5 does not divide width 384",
        "dropout is 1.0",
    ):
        assert problem in str(e.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"student": "huge"}, "student is 'huge', expected one of tiny, small, base"),
        ({"student": 3}, "student is 3, expected one of tiny"),
        ({"student": {"width": 0}}, "width is 0, expected a whole number, 1 or more"),
        ({"student": {"width": "384"}}, "width is '384', expected a whole number"),
        ({"student": {"breadth": 3}}, "no size is called 'breadth'; expected some of width"),
        ({"encoder_weights": "timm"}, "encoder_weights 'timm' are those of a timm model"),
    ],
)
def test_what_is_not_possible_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        StudentConfig.from_values(values)


def test_reading_a_config_imports_neither_torch_nor_timm() -> None:
    script = (
        "import sys, clipocr.train.models.config\nassert not {'torch', 'timm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
