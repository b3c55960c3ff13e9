"""A recogniser in one safetensors file: weights, and in the header all that rebuilds it.

Such a file holds no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...shared.errors import CheckpointError
from ...shared.foreign_file import describe_foreign
from ...shared.geometry import TALL
from ..models.recogniser import Recogniser

MODEL_NAME = "model.safetensors"
"""The name the Hugging Face hub knows."""

_JSON = ("settings", "charset", "max_label_length")
"""What a checkpoint and a description both hold, besides strings."""


def write_safetensors(path: Path, recogniser: Recogniser, description: Mapping[str, Any]) -> None:
    """Write a recogniser's weights, its description as the header's metadata."""
    from safetensors.torch import save_file

    weights = {name: tensor.contiguous() for name, tensor in recogniser.state_dict().items()}
    save_file(weights, path, metadata=as_strings(description))


def read_safetensors(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds of a recogniser to use.

    Raises:
        CheckpointError: damaged, or not a recogniser of this program.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        foreign = describe_foreign(path)
        reason = f"it is {foreign}" if foreign else str(e)
        raise CheckpointError(f"{path} cannot be read as safetensors: {reason}") from e
    try:
        teacher = metadata["teacher"]
        return {
            **{name: json.loads(metadata[name]) for name in _JSON},
            "method": metadata["method"],
            "tall": json.loads(metadata["preprocessing"]).get("tall", TALL[0]),
            "recogniser": weights,
            "teacher": None if teacher == "null" else teacher,
            "reached": json.loads(metadata["moment"]),
            "training": None,
        }
    except (KeyError, ValueError) as e:
        raise CheckpointError(
            f"{path} is not a clipocr recogniser ({e.__class__.__name__}: {e}); expected a file of "
            "clipocr export --format safetensors"
        ) from None


def as_strings(description: Mapping[str, Any]) -> dict[str, str]:
    """Return a description as ONNX and safetensors keep it: strings as they are, else JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in description.items()
    }
