"""A student as one ONNX graph, the decoding loop and the normalisation included.

PyTorch's exporter writes the two halves of reading (`graph`), and they are put together here around
ONNX's own ``Loop``, which ends when every row has said EOS, as the student itself does. Unrolled,
26 positions would be a graph of eight thousand nodes that takes minutes to make, and that decodes
all positions of every word.

    images ─► Beginning ─► memories ┐
                     BOS ─► Loop ( Step ─► argmax ─► EOS? ) ─► transpose ─► probabilities
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ....shared.distribution import install_command
from ....shared.errors import UsageError
from ....shared.geometry import VIEW_SHAPE
from ...models.student import Student
from ..safetensors_file import as_strings
from .description import INPUT_NAME, OUTPUT_NAME
from .graph import NUM_STATES, Beginning, Step, example_inputs

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""The first with GELU as one operator; onnxruntime has it since 1.17 (2024)."""

_MEMORIES = [f"memory_{i}" for i in range(NUM_STATES)]
_CONTENTS = [f"content_{i}" for i in range(NUM_STATES)]
_NEW_CONTENTS = [f"new_content_{i}" for i in range(NUM_STATES)]


def require_onnx() -> None:
    """Check that what exporting to ONNX takes is installed.

    Raises:
        UsageError: it is not; says how to install it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise UsageError(
            f"ONNX needs {e.name}, which is not installed: {install_command('export')}"
        ) from e


def write_onnx(path: Path, student: Student, description: dict[str, Any]) -> None:
    """Write a student, in eval mode and on the CPU, with its description as metadata."""
    import onnx
    from onnx import checker, helper

    beginning, step = _halves(student)
    graph = _reading_graph(beginning.graph, step.graph, student)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=beginning.ir_version,
        producer_name="clipocr",
        producer_version=description["clipocr_version"],
    )
    helper.set_model_props(model, as_strings(description | {"opset": OPSET}))
    checker.check_model(model, full_check=True)
    onnx.save(model, path)


def open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what an ONNX file computes, on the CPU by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        (probabilities,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
        return np.asarray(probabilities)

    return run


def _halves(student: Student) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Export the two halves, the names of what passes between them as above."""
    images, step_inputs = example_inputs(student)
    batch = torch.export.Dim("batch")
    # Up to the last but one: a step adds one more. PyTorch states this bound when it is left out.
    position = torch.export.Dim("position", max=student.tokenizer.max_label_length)
    of_row, of_position = {0: batch}, {0: batch, 2: position}
    beginning = _export(
        Beginning(student), (images,), ({0: batch},), inputs=[INPUT_NAME], outputs=_MEMORIES
    )
    step = _export(
        Step(student),
        step_inputs,
        (of_row, [of_position] * NUM_STATES, [of_row] * NUM_STATES),
        inputs=["tokens", *_CONTENTS, *_MEMORIES],
        outputs=["step_probabilities", *_NEW_CONTENTS],
    )
    return (
        _renamed(beginning, "beginning/", {INPUT_NAME, *_MEMORIES}),
        _renamed(
            step,
            "step/",
            {"tokens", *_CONTENTS, *_MEMORIES, "step_probabilities", *_NEW_CONTENTS},
        ),
    )


def _export(
    module: torch.nn.Module,
    example: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns of its own and its libraries' affairs; the result is checked instead.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


def _renamed(model: onnx.ModelProto, prefix: str, kept: set[str]) -> onnx.ModelProto:
    """Give all values but `kept` a prefix, and drop what PyTorch notes of the Python behind them.

    The notes hold stack traces, and with them paths of this machine.
    """
    graph = model.graph

    def new(name: str) -> str:
        return name if name in kept or not name else prefix + name

    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.name = prefix + node.name
        node.input[:] = map(new, node.input)
        node.output[:] = map(new, node.output)
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
        value.name = new(value.name)
    return model


def _reading_graph(
    beginning: onnx.GraphProto, step: onnx.GraphProto, student: Student
) -> onnx.GraphProto:
    """Put the halves together. Every constant of both is one of the whole graph."""
    from onnx import TensorProto, helper, numpy_helper

    tokenizer, heads = student.tokenizer, student.config.decoder_heads
    constants = {
        "zero": np.array([0]),
        "position_axis": np.array([2]),
        "bos": np.array([tokenizer.bos_id]),
        "eos": np.array(tokenizer.eos_id),
        "not_ended": np.array([False]),
        "always": np.array(True),
        "num_positions": np.array(student.tokenizer.max_label_length + 1),
    }
    body = helper.make_graph(
        [
            *step.node,
            helper.make_node("ArgMax", ["step_probabilities"], ["new_tokens"], axis=1, keepdims=0),
            helper.make_node("Equal", ["new_tokens", "eos"], ["ends"]),
            helper.make_node("Or", ["has_ended", "ends"], ["new_has_ended"]),
            helper.make_node("Not", ["new_has_ended"], ["goes_on"]),
            helper.make_node("Cast", ["goes_on"], ["goes_on_number"], to=TensorProto.INT32),
            helper.make_node("ReduceMax", ["goes_on_number"], ["any_number"], keepdims=0),
            helper.make_node("Cast", ["any_number"], ["any_goes_on"], to=TensorProto.BOOL),
        ],
        "step",
        inputs=[
            helper.make_tensor_value_info("position", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on_before", TensorProto.BOOL, []),
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("has_ended", TensorProto.BOOL, ["batch"]),
            *(_content_info(name, heads, student.config.width) for name in _CONTENTS),
        ],
        outputs=[
            helper.make_tensor_value_info("any_goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("new_tokens", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("new_has_ended", TensorProto.BOOL, ["batch"]),
            *(_content_info(name, heads, student.config.width) for name in _NEW_CONTENTS),
            helper.make_tensor_value_info(
                "step_probabilities", TensorProto.FLOAT, ["batch", tokenizer.num_classes]
            ),
        ],
    )
    firsts = [f"first_{name}" for name in _CONTENTS]
    lasts = [f"last_{name}" for name in _CONTENTS]
    loop = helper.make_node(
        "Loop",
        ["num_positions", "always", "first_tokens", "first_has_ended", *firsts],
        ["last_tokens", "last_has_ended", *lasts, "probabilities_LBC"],
        body=body,
    )
    return helper.make_graph(
        [
            *beginning.node,
            helper.make_node("Shape", [INPUT_NAME], ["batch_size"], start=0, end=1),
            helper.make_node("Expand", ["bos", "batch_size"], ["first_tokens"]),
            helper.make_node("Expand", ["not_ended", "batch_size"], ["first_has_ended"]),
            *(
                # Nothing of the memory: a content of no positions, of the right rows and heads.
                helper.make_node("Slice", [memory, "zero", "zero", "position_axis"], [first])
                for memory, first in zip(_MEMORIES, firsts, strict=True)
            ),
            loop,
            helper.make_node("Transpose", ["probabilities_LBC"], [OUTPUT_NAME], perm=[1, 0, 2]),
        ],
        "clipocr",
        inputs=[
            helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", *VIEW_SHAPE])
        ],
        outputs=[
            helper.make_tensor_value_info(
                OUTPUT_NAME, TensorProto.FLOAT, ["batch", "positions", tokenizer.num_classes]
            )
        ],
        initializer=[
            *beginning.initializer,
            *step.initializer,
            *(numpy_helper.from_array(value, name) for name, value in constants.items()),
        ],
    )


def _content_info(name: str, heads: int, width: int) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    # No name for the positions: they grow from step to step.
    return helper.make_tensor_value_info(
        name, TensorProto.FLOAT, ["batch", heads, None, width // heads]
    )
