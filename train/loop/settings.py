"""Training options by their flat names, as the command line and ablation tables write them.

`TrainConfig` is nested by what its parts are for. People write ``--intra-weight 3``, or
``intra_weight = 3`` in a table; this is the one place that knows where each of those belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from ...shared.charset import Charset
from ...shared.device import choose_precision
from ...shared.errors import UsageError
from ..methods.clip_ocr.losses import AlignmentLoss
from ..methods.clip_ocr.method import ClipOcrConfig
from ..models.config import StudentConfig, parse_size
from .config import TrainConfig

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
_OWN = {"recipe", "student", "charset", "precision"}

SETTING_NAMES = tuple(sorted({*_METHOD, *_LOSS, *_RUN, *_OWN}))
"""Every name `train_config` understands."""

_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "int | None": "a whole number",
    "float": "a number",
    "str": "a text",
    "tuple[int, ...]": "a list of whole numbers",
}
"""What a table may say for a field, by the field's type."""


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
    loss = AlignmentLoss(**_values(settings, AlignmentLoss, _LOSS))
    method = ClipOcrConfig(
        **_values(settings, ClipOcrConfig, {name: name for name in _METHOD}), loss=loss
    )
    return TrainConfig(
        **_values(settings, TrainConfig, _RUN),
        student=StudentConfig(size=parse_size(settings.get("student", "small"))),
        # TOML and --set read 36 as a number.
        charset=Charset.load(str(settings.get("charset", "36"))),
        method=method,
        precision=choose_precision(asked_precision(settings), device)[0],
    )


def asked_precision(settings: Mapping[str, Any]) -> str:
    """Return the precision that settings ask for, through their recipe or ``auto``."""
    recipe = _chosen("recipe", settings.get("recipe", "paper"), RECIPES)
    return str({"precision": "auto", **recipe, **settings}["precision"])


def _chosen(kind: str, name: Any, choices: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in choices:
        raise UsageError(f"{kind} is {name!r}, expected one of {', '.join(choices)}")
    return choices[name]


def _values(
    settings: Mapping[str, Any], config: type[Any], fields_of: Mapping[str, str]
) -> dict[str, Any]:
    """Return the settings that belong to a config, by field, their types checked.

    Tables are written by hand, and a text where a number belongs would fail far from here.
    """
    types = {f.name: str(f.type) for f in fields(config)}
    values = {}
    for name, field in fields_of.items():
        if name not in settings:
            continue
        value, expected = settings[name], types[field]
        if not _fits(value, expected):
            raise UsageError(f"{name} is {value!r}, expected {_EXPECTED[expected]}")
        values[field] = value
    return values


def _fits(value: Any, expected: str) -> bool:
    if isinstance(value, bool) or expected == "bool":
        return isinstance(value, bool) and expected == "bool"
    match expected:
        case "int":
            return isinstance(value, int)
        case "int | None":
            return value is None or isinstance(value, int)
        case "float":
            return isinstance(value, int | float)
        case "str":
            return isinstance(value, str)
    return isinstance(value, list | tuple) and all(_fits(v, "int") for v in value)
