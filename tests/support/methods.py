"""Methods that tests define, installed as another package would bring them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest


def install_methods(
    folder: Path, points: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write a distribution's entry points into a folder, and put that on the path.

    Args:
        folder: New.
        points: ``module:Class`` by the method's name.
        monkeypatch: Takes it back.
    """
    info = folder / "toy_methods-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-methods\nVersion: 1.0\n")
    lines = (f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[clipocr.methods]\n{''.join(lines)}")
    monkeypatch.syspath_prepend(str(folder))
