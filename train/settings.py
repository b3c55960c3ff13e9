"""Training options by their flat names, as the command line and ablation tables write them.

`TrainConfig` is nested by what its parts are for. People write ``--intra-weight 3``, or
``intra_weight = 3`` in a table; this is the one place that knows where each of those belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from ..shared.charset import Charset
from ..shared.device import choose_precision
from ..shared.errors import UsageError
from .clip_ocr import ClipOcrConfig
from .config import TrainConfig
from .losses import AlignmentLoss
from .student import STUDENT_PRESETS

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "small-gpu": {"accumulate": 8, "precision": "fp16"},
}
"""Settings under one name. ``paper``: the defaults. ``small-gpu``: the same batches of 320 in parts
of 40, in half precision, for 4 to 6 GB; LCL then relates the rows of a part."""

_METHOD = {f.name for f in fields(ClipOcrConfig)} - {"loss"}
_LOSS = {"loss": "kind"} | {f.name: f.name for f in fields(AlignmentLoss) if f.name != "kind"}
_RUN = {f.name: f.name for f in fields(TrainConfig)} | {"views": "num_views"}
for _nested in ("student", "charset", "method", "num_views", "precision"):
    del _RUN[_nested]
_OWN = {"recipe", "student", "charset", "max_label_length", "precision"}

SETTING_NAMES = tuple(sorted({*_METHOD, *_LOSS, *_RUN, *_OWN}))
"""Every name `train_config` understands."""


def train_config(settings: Mapping[str, Any], device: torch.device) -> TrainConfig:
    """Return the config that flat settings mean; what they do not name has its default.

    Args:
        settings: Values by name. ``student`` is a preset; ``charset`` 36, 62, 94 or a file;
            ``recipe`` one of `RECIPES`, whose settings the others override; ``precision`` may be
            ``auto``.
        device: Where the run will be, for ``auto``.

    Raises:
        UsageError: an unknown name, or a value that is not possible.
    """
    unknown = sorted(set(settings) - set(SETTING_NAMES))
    if unknown:
        raise UsageError(
            f"unknown training setting {', '.join(map(repr, unknown))}; "
            f"expected some of {', '.join(SETTING_NAMES)}"
        )
    recipe = settings.get("recipe", "paper")
    settings = {**_chosen("recipe", recipe, RECIPES), **settings}
    student = _chosen("student", settings.get("student", "small"), STUDENT_PRESETS)
    if "max_label_length" in settings:
        student = replace(student, max_label_length=settings["max_label_length"])
    loss = _typed(AlignmentLoss, {_LOSS[k]: v for k, v in settings.items() if k in _LOSS})
    method = _typed(
        ClipOcrConfig, {**{k: v for k, v in settings.items() if k in _METHOD}, "loss": loss}
    )
    precision, _ = choose_precision(settings.get("precision", "auto"), device)
    run = {_RUN[k]: v for k, v in settings.items() if k in _RUN}
    charset = Charset.load(settings.get("charset", "36"))
    config: TrainConfig = _typed(
        TrainConfig,
        {**run, "student": student, "charset": charset, "method": method, "precision": precision},
    )
    return config


def _chosen(kind: str, name: Any, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        raise UsageError(f"{kind} is {name!r}, expected one of {', '.join(choices)}")
    return choices[name]


def _typed(config: Any, values: Mapping[str, Any]) -> Any:
    """Build a config, checking that numbers are numbers: tables are written by hand."""
    defaults = {f.name: f.default for f in fields(config)}
    for name, value in values.items():
        default = defaults[name]
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        fits = {
            bool: isinstance(value, bool),
            int: is_whole,
            float: is_whole or isinstance(value, float),
            str: isinstance(value, str),
            tuple: isinstance(value, list | tuple) and all(isinstance(v, int) for v in value),
        }
        if not fits.get(type(default), True):
            expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(
                type(default), "a text" if isinstance(default, str) else "a list of whole numbers"
            )
            raise UsageError(f"{name} is {value!r}, expected {expected}")
    return config(**values)
