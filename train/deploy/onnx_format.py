"""A recogniser as one ONNX graph, decoding and the normalisation included.

Of one that writes a character a step, PyTorch's exporter writes the two halves of reading, and they
are put together here around ONNX's own ``Loop``, which ends when every row has said EOS, as the
recogniser itself does. Unrolled, 26 positions would be a graph of eight thousand nodes that takes
minutes to make, and that decodes all positions of every word. Any other recogniser's ``decode`` is
exported whole.

    images ─► begin ─► memories ┐
                 BOS ─► Loop ( step ─► argmax ─► EOS? ) ─► transpose ─► probabilities
                                                           or argmax ─► refine ─► probabilities

Shapes: B batch, S image tokens, H heads, D width, P positions read so far, C characters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...shared.errors import UsageError
from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from ..models.attention import KeysValues
from ..models.autoregressive import AutoregressiveRecogniser, DecoderState
from ..models.recogniser import Recogniser
from .safetensors_file import as_strings

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""The first with GELU as one operator; onnxruntime has it since 1.17 (2024)."""

INPUT_NAME = "images"
OUTPUT_NAME = "probabilities"

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
    "a row is noise. Positions end when every row has said EOS, or with the longest label.",
    "confidence": "product of the probabilities of a row's classes, EOS included",
}
"""What is true of a graph, besides what is true of a recogniser in any format."""

_AS_WRITTEN = f"{OUTPUT_NAME} = Transpose <perm = [1, 0, 2]> (by_position)"
_REFINED = """
            likeliest = ArgMax <axis = 2, keepdims = 0> (by_position)
            shorter = Transpose <perm = [1, 0]> (likeliest)
            shape_all_ended = Concat <axis = 0> (batch_size, shape_ended)
            all_ended = Expand (ended, shape_all_ended)
            longer = Concat <axis = 1> (shorter, all_ended)
            written = Slice (longer, first, num_written, along_positions)"""
"""What was written, followed by EOS up to the longest label."""


def require_onnx() -> None:
    """Raise a `UsageError` that says how to install what exporting to ONNX takes, if need be."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise UsageError(
            f"ONNX needs {e.name}, which is not installed: pip install 'clipocr-str[export]'"
        ) from e


def write_onnx(path: Path, recogniser: Recogniser, description: dict[str, Any]) -> None:
    """Write a recogniser, in eval mode and on the CPU, with its description as metadata."""
    import onnx
    from onnx import checker, helper

    if isinstance(recogniser, AutoregressiveRecogniser):
        graph = _looping_graph(recogniser)
    else:
        images = _blank(recogniser)
        batch = {0: torch.export.Dim("batch")}
        graph = _export(_Decode(recogniser), (images,), (batch,), [INPUT_NAME], [OUTPUT_NAME])
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        # By default it is the newest, which an older onnxruntime cannot read.
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="clipocr",
        producer_version=description["clipocr_version"],
    )
    of_graph = {"input": _INPUT | {"shape": _input_shape(recogniser)}, "output": _OUTPUT}
    helper.set_model_props(model, as_strings(description | of_graph | {"opset": OPSET}))
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
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        (probabilities,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
        return np.asarray(probabilities)

    return run


class _Part(nn.Module):
    """A part of reading, as a module: the exporter takes no functions."""

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.recogniser: Any = recogniser


class _Decode(_Part):
    """Reading in one pass."""

    def forward(self, images: Tensor) -> Tensor:
        """Read views. Shape: (B, height, width, 3) uint8 -> (B, L, C + 1)."""
        logits: Tensor = self.recogniser.decode(normalize(images, STUDENT_MEAN, STUDENT_STD))
        return logits.softmax(dim=-1)


class _Begin(_Part):
    """From views to the keys and values that decoding reads of them."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Shape: (B, height, width, 3) uint8 -> any number of (B, H, S, D / H)."""
        state = self.recogniser.begin(normalize(images, STUDENT_MEAN, STUDENT_STD))
        return _flat(state.memories)


class _Step(_Part):
    """One position of every row."""

    def forward(
        self, tokens_B: Tensor, contents: list[Tensor], memories: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the probability of each class, and the contents with one more position.

        Shapes: tokens before it (B,), contents so far any number of (B, H, P, D / H), memories as
        from `_Begin` -> (B, C + 1), contents.
        """
        state = DecoderState(memories=_paired(memories), contents=_paired(contents))
        logits_BC, state = self.recogniser.step(tokens_B, state)
        return logits_BC.softmax(dim=-1), _flat(state.contents)


class _Refine(_Part):
    """All positions once more."""

    def forward(self, tokens_BL: Tensor, memories: list[Tensor]) -> Tensor:
        """Shape: (B, L) written, EOS after the end -> (B, L, C + 1) probabilities."""
        state = DecoderState(memories=_paired(memories))
        logits: Tensor = self.recogniser.refine(tokens_BL, state)
        return logits.softmax(dim=-1)


def _flat(states: Sequence[KeysValues]) -> list[Tensor]:
    return [x for keys_values in states for x in keys_values]


def _paired(flat: Sequence[Tensor]) -> tuple[KeysValues, ...]:
    return tuple(KeysValues(*flat[i : i + 2]) for i in range(0, len(flat), 2))


def _looping_graph(recogniser: AutoregressiveRecogniser) -> onnx.GraphProto:
    """Export the parts and put them together around a loop."""
    from onnx import TensorProto, compose, numpy_helper, parser

    tokenizer = recogniser.tokenizer
    images = _blank(recogniser)
    tokens_B = torch.full((2,), tokenizer.bos_id)
    with torch.no_grad():
        memories = _Begin(recogniser)(images)
        # Two positions, because a size of 1 would be taken for a constant.
        state = DecoderState(memories=_paired(memories))
        for _ in range(2):
            state = recogniser.step(tokens_B, state)[1]
    contents = [content.contiguous() for content in _flat(state.contents)]
    memory_names = [f"memory_{i}" for i in range(len(memories))]
    content_names = [f"content_{i}" for i in range(len(contents))]

    batch = torch.export.Dim("batch")
    # Up to the last but one: a step adds one more. PyTorch states this bound when it is left out.
    position = torch.export.Dim("position", max=tokenizer.max_label_length)
    begin = _export(
        _Begin(recogniser), (images,), ({0: batch},), inputs=[INPUT_NAME], outputs=memory_names
    )
    step = _export(
        _Step(recogniser),
        (tokens_B, contents, memories),
        ({0: batch}, [{0: batch, 2: position}] * len(contents), [{0: batch}] * len(memories)),
        inputs=["tokens", *content_names, *memory_names],
        outputs=["step_probabilities", *(f"new_{name}" for name in content_names)],
    )
    longest = tokenizer.max_label_length + 1
    halves = {"begin": begin, "step": step}
    if recogniser.refines:
        halves["refine"] = _export(
            _Refine(recogniser),
            (tokens_B[:, None].repeat(1, longest), memories),
            ({0: batch}, [{0: batch}] * len(memories)),
            inputs=["written", *memory_names],
            outputs=[OUTPUT_NAME],
        )
    for prefix, half in halves.items():
        compose.add_prefix_graph(
            half, f"{prefix}/", rename_inputs=False, rename_outputs=False, inplace=True
        )

    # No name for the positions of a content: they grow from step to step.
    of_content = [f"float[batch, {c.shape[1]}, ?, {c.shape[3]}]" for c in contents]
    typed = [" ".join(pair) for pair in zip(of_content, content_names, strict=True)]
    carried = ["int64[batch] tokens", "bool[batch] has_ended", *typed]
    new_carried = [" new_".join(each.rsplit(" ", 1)) for each in carried]
    of_position = f"float[batch, {tokenizer.num_classes}] step_probabilities"
    graph = parser.parse_graph(f"""
        clipocr (uint8[{", ".join(map(str, _input_shape(recogniser)))}] {INPUT_NAME})
            => (float[batch, positions, {tokenizer.num_classes}] {OUTPUT_NAME}) {{
            batch_size = Shape <start = 0, end = 1> ({INPUT_NAME})
            first_tokens = Expand (bos, batch_size)
            first_has_ended = Expand (not_ended, batch_size)
            {_each("empty_{0} = Concat <axis = 0> (batch_size, shape_{0})", content_names, " ")}
            {_each("first_{0} = ConstantOfShape (empty_{0})", content_names, " ")}
            last_tokens, last_has_ended, {_each("last_{}", content_names)}, by_position = Loop <
                body = step (int64 position, bool goes_on_before, {", ".join(carried)})
                    => (bool any_goes_on, {", ".join(new_carried)}, {of_position}) {{
                    new_tokens = ArgMax <axis = 1, keepdims = 0> (step_probabilities)
                    ends = Equal (new_tokens, eos)
                    new_has_ended = Or (has_ended, ends)
                    goes_on = Not (new_has_ended)
                    goes_on_number = Cast <to = {TensorProto.INT32}> (goes_on)
                    any_number = ReduceMax <keepdims = 0> (goes_on_number)
                    any_goes_on = Cast <to = {TensorProto.BOOL}> (any_number)
                }}
            > (num_positions, always, first_tokens, first_has_ended,
                {_each("first_{}", content_names)})
            {_REFINED if recogniser.refines else _AS_WRITTEN}
        }}""")
    if recogniser.refines:
        graph.node.extend(halves["refine"].node)
    (loop,) = (node for node in graph.node if node.op_type == "Loop")
    _put_first(loop.attribute[0].g, step)
    _put_first(graph, begin)  # After the loop's, because it copies the loop.
    constants = {
        "bos": np.array([tokenizer.bos_id]),
        "eos": np.array(tokenizer.eos_id),
        "not_ended": np.array([False]),
        "always": np.array(True),
        "num_positions": np.array(longest),
        **{
            f"shape_{name}": np.array([content.shape[1], 0, content.shape[3]])
            for name, content in zip(content_names, contents, strict=True)
        },
    }
    if recogniser.refines:
        constants |= {
            "first": np.array([0]),
            "num_written": np.array([longest]),
            "along_positions": np.array([1]),
            "ended": np.full((1, longest), tokenizer.eos_id),
            "shape_ended": np.array([longest]),
        }
    # Every constant of the parts is one of the whole graph.
    for half in halves.values():
        graph.initializer.extend(half.initializer)
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    return graph


def _each(template: str, names: Sequence[str], separator: str = ", ") -> str:
    return separator.join(template.format(name) for name in names)


def _put_first(graph: onnx.GraphProto, half: onnx.GraphProto) -> None:
    nodes = [*half.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _export(
    module: nn.Module,
    example: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> onnx.GraphProto:
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns of its own and its libraries' affairs; the result is checked instead.
        warnings.simplefilter("ignore")
        # Once before: `normalize` keeps its constants, and while PyTorch exports, a tensor that is
        # made has no numbers, so the next real picture would be normalised by nothing.
        module.eval()(*example)
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    graph: onnx.GraphProto = program.model_proto.graph
    _drop_notes(graph)
    return graph


def _drop_notes(graph: onnx.GraphProto) -> None:
    """Drop the stack traces that PyTorch notes, because they name folders of this machine."""
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _drop_notes(attribute.g)
