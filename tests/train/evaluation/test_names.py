"""What readers are called in the columns of a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipocr.train.evaluation.names import short_names
from clipocr.train.reading.readers import FunctionReader, PictureBatchReader


class FileReader(PictureBatchReader):
    """Reads nothing; a reader is called by its file alone."""

    def __init__(self, file: str) -> None:
        self.name, self.checkpoint = file, Path(file)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["runs/base/best.pt", "runs/small/last.pt"], ["base", "small"]),
        (["x/run/best.pt", "y/run/best.pt", "z/best.pt"], ["x/run", "y/run", "z"]),
        # Only as far up as it takes, and only where it takes that.
        (["a/x/run/best.pt", "b/x/run/best.pt", "b/y/run/best.pt"],
         ["a/x/run", "b/x/run", "y/run"]),
        (["run/best.pt", "run/last.pt", "other/best.pt"], ["run/best.pt", "run/last.pt", "other"]),
        (["a/x/best.pt", "a/x/last.pt", "b/x/last.pt"], ["x/best.pt", "x/last.pt", "x"]),
        (["a/run/best.pt", "a/run/last.pt", "b/run/best.pt", "b/run/last.pt"],
         ["a/run/best.pt", "a/run/last.pt", "b/run/best.pt", "b/run/last.pt"]),
        (["run/best.pt", "run/model.onnx"], ["run", "model.onnx"]),
        (["model/model.safetensors"], ["model"]),
        (["run/best.pt", "run/best.pt"], ["run", "run (2)"]),
    ],
)  # fmt: skip
def test_the_shortest_path_that_tells_them_apart(files: list[str], names: list[str]) -> None:
    assert short_names([FileReader(file) for file in files]) == names


def test_functions_of_one_name_are_numbered() -> None:
    readers = [FunctionReader(len, name=name) for name in ("f", "g", "f")]
    assert short_names(readers) == ["f", "g", "f (2)"]
