"""A recogniser as one ONNX graph, decoding and the normalisation included.

What it is put together from, the recogniser says (`Recogniser.assemble`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...shared.charset import Charset
from ...shared.data.images import make_view
from ...shared.distribution import install_command
from ...shared.errors import CheckpointError, UsageError
from ...shared.geometry import TALL
from ..models.recogniser import Recogniser
from ..models.tokenizer import LabelTokenizer
from ..reading.options import ReadingOptions
from ..reading.readers import Text, ViewReader
from .safetensors_file import as_strings

INPUT_NAME = "images"
OUTPUT_NAME = "probabilities"

GRAPH_VERSION = 1
"""The ``model_version`` of a file; it rises when input, output or metadata change their meaning."""

MOST_BYTES = 2**31
"""Of a protobuf message."""

_INPUT: dict[str, Any] = {
    "name": INPUT_NAME,
    "dtype": "uint8",
    "layout": "NHWC",
    "normalization": "done by the graph",
}
_OUTPUT: dict[str, Any] = {
    "name": OUTPUT_NAME,
    "dtype": "float32",
    "shape": ["batch", "positions", "classes"],
    "reading": "the likeliest class of each position, up to the first EOS; what follows the EOS of "
    "a row is noise. Positions end when every row has ended, or with the longest label.",
    "confidence": "product of the probabilities of a row's classes, EOS included",
}
"""What is true of a graph, besides what is true of a recogniser in any format."""


def require_onnx() -> None:
    """Raise a `UsageError` that says how to install what exporting to ONNX takes, if need be."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise UsageError(
            f"ONNX needs {e.name}, which is not installed: {install_command('export')}"
        ) from e


def write_onnx(path: Path, recogniser: Recogniser, description: dict[str, Any]) -> None:
    """Write a recogniser, in eval mode and on the CPU, with its description as metadata.

    Raises:
        UsageError: it is too large for such a file, or cannot be put together.
    """
    import onnx
    from onnx import TensorProto, checker, helper

    from .onnx_graph import OPSET, OnnxGraph

    num_bytes = sum(weight.nbytes for weight in recogniser.parameters())
    if num_bytes > MOST_BYTES:
        raise UsageError(
            f"the recogniser has {num_bytes / 1e9:.1f} GB of weights, an ONNX file can hold "
            f"{MOST_BYTES / 1e9:.1f} GB; pass --format safetensors"
        )
    if recogniser.tokenizer.max_label_length < 2:
        # What grows in its loops would never be seen to grow.
        raise UsageError(
            "the recogniser reads one character at most, and a graph is put together for two or "
            "more; pass --format safetensors"
        )
    graph = OnnxGraph()
    images = graph.input(INPUT_NAME, _blank(recogniser))
    graph.softmax(recogniser.assemble(graph, images), OUTPUT_NAME)
    shape = _input_shape(recogniser)
    of_output: list[str | int] = ["batch", "positions", recogniser.tokenizer.num_classes]
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        graph.whole(
            helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, shape),
            helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, of_output),
        ),
        opset_imports=opsets,
        # By default it is the newest, which an older onnxruntime cannot read.
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="clipocr",
        producer_version=description["clipocr_version"],
        model_version=GRAPH_VERSION,
    )
    of_graph = {
        "input": _INPUT | {"shape": shape},
        "output": _OUTPUT,
        "opset": OPSET,
        # The graph keeps equal weights once, so its own would be fewer.
        "num_parameters": sum(weight.numel() for weight in recogniser.parameters()),
    }
    helper.set_model_props(model, as_strings(description | of_graph))
    checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _input_shape(recogniser: Recogniser) -> list[str | int]:
    """Return the shape of a graph's input."""
    return ["batch", *recogniser.view_px, 3]


def _blank(recogniser: Recogniser) -> Tensor:
    """Return views to trace with. Shape: (2, height, width, 3) uint8.

    PyTorch takes sizes of 0 and 1 for constants, so neither is used for what may vary.
    """
    return torch.zeros(2, *recogniser.view_px, 3, dtype=torch.uint8)


def open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what an ONNX file computes, on the CPU by onnxruntime."""
    return _computes(_session(path))


class OnnxReader(ViewReader):
    """An exported recogniser, read by onnxruntime on the CPU with the threads that PyTorch has."""

    kind = "an ONNX file"
    precision = "fp32"
    device = torch.device("cpu")

    def __init__(self, path: Path, *, batch_size: int = ReadingOptions.batch_size) -> None:
        """Open a file.

        Raises:
            CheckpointError: it is none of `write_onnx`, or damaged.
            UsageError: onnxruntime is not installed.
        """
        require_onnx()
        import onnxruntime

        try:
            session = _session(path)
            stated = session.get_modelmeta().custom_metadata_map
            self.charset = Charset(**json.loads(stated["charset"]))
            self.max_label_length = int(stated["max_label_length"])
            made = json.loads(stated["preprocessing"])
            self._view_px = int(made["height_px"]), int(made["width_px"])
        except Exception as e:
            # onnxruntime raises errors of no other type.
            raise CheckpointError(
                f"{path} is no recogniser of clipocr ({type(e).__name__}: {e}); expected a file of "
                "clipocr export --format onnx"
            ) from e
        self.name, self.checkpoint, self.batch_size = str(path), path, batch_size
        self._tokenizer = LabelTokenizer(self.charset, self.max_label_length)
        self.num_parameters = int(stated["num_parameters"]) if "num_parameters" in stated else None
        self.library = f"onnxruntime {onnxruntime.__version__}"
        self._tall = made.get("tall", TALL[0])
        self._compute = _computes(session)

    def prepare(self, picture: Image.Image) -> Any:
        """Return the view of a picture."""
        return make_view(picture, self._tall, self._view_px)

    def read_views(self, views: Tensor) -> list[Text]:
        """Read a batch of views. Shape: (B, H, W, 3), uint8."""
        probabilities = torch.from_numpy(self._compute(views.numpy()))
        texts, confidences = self._tokenizer.decode(probabilities)
        return [
            Text(text, tuple(confidence.tolist()))
            for text, confidence in zip(texts, confidences, strict=True)
        ]


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # It warns of names in a loop's body that it leaves alone.
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _computes(session: Any) -> Callable[[np.ndarray], np.ndarray]:
    def run(images: np.ndarray) -> np.ndarray:
        (probabilities,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
        return np.asarray(probabilities)

    return run
