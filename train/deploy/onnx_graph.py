"""An ONNX graph, put together from modules that PyTorch's exporter writes one by one.

Loops are ONNX's own ``Loop``, which ends when its body says so. Unrolled, 26 positions would be a
graph of eight thousand nodes that takes minutes to make, and that decodes all positions of every
word.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

OPSET = 20
"""The first with GELU as one operator; onnxruntime has it since 1.17 (2024)."""

_BATCH = "batch"


class Value(NamedTuple):
    """A tensor of the graph."""

    name: str
    example: Tensor
    """What PyTorch traces with. It takes sizes of 0 and 1 for constants, so no size that varies is
    one of them."""
    axes: Mapping[int, Any]
    """Those whose size varies: the dimension, by axis."""


class _Part(NamedTuple):
    """An exported module."""

    graph: onnx.GraphProto
    constants: Mapping[str, str]
    """Names in the whole graph of what it has of weights and constants, by its own names."""


class OnnxGraph:
    """An `Assembler`. Of a module that is called twice the nodes are there twice, weights once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[bytes, onnx.TensorProto] = {}
        """By what they are: parts have weights in common."""
        self._batch = Dim(_BATCH)
        self._parts: dict[nn.Module, _Part] = {}
        self._num_uses = 0

    def input(self, name: str, example: Tensor) -> Value:
        """Return an input of the whole graph."""
        return Value(name, example, self._axes())

    def call(self, module: nn.Module, *inputs: Value | Sequence[Value]) -> list[Value]:
        """Add a module; see `Assembler`."""
        part, returned = self._part(module, inputs)
        given = zip(_names(part.graph.input), _flat(inputs), strict=True)
        _, copy = self._copy(module, part, {own: value.name for own, value in given})
        self.nodes.extend(copy.node)
        return [
            Value(name, example.contiguous(), self._axes())
            for name, example in zip(_names(copy.output), _as_list(returned), strict=True)
        ]

    def loop(
        self, body: nn.Module, state: Sequence[Value], fixed: Sequence[Value], most: int
    ) -> tuple[list[Value], list[Value]]:
        """Add a loop; see `Assembler`."""
        later = self._two_steps_later(body, state, fixed, most)
        part, (_, new_state, written) = self._part(body, (later, fixed))
        names = _names(part.graph.input)[len(state) :]
        given = {own: value.name for own, value in zip(names, fixed, strict=True)}
        prefix, copy = self._copy(body, part, given)
        # What is fixed the body reads from outside.
        carried = copy.input[: len(state)]
        time = helper.make_tensor_value_info(f"{prefix}time", onnx.TensorProto.INT64, [])
        goes_on = helper.make_tensor_value_info(f"{prefix}before", onnx.TensorProto.BOOL, [])
        for value in (*carried, *copy.output):
            _forget_sizes(value)
        of_body = helper.make_graph(copy.node, prefix, [time, goes_on, *carried], copy.output)
        last = [f"{prefix}last_{i}" for i in range(len(state))]
        by_time = [f"{prefix}by_time_{i}" for i in range(len(written))]
        by_row = [f"{prefix}by_row_{i}" for i in range(len(written))]
        limits = [self._constant(np.array(limit)) for limit in (most, True)]
        first = [value.name for value in state]
        self._add("Loop", [*limits, *first], [*last, *by_time], body=of_body)
        for name, output, example in zip(by_time, by_row, written, strict=True):
            self._add("Transpose", [name], [output], perm=[1, 0, *range(2, example.ndim + 1)])
        twice = [torch.stack([example, example], dim=1) for example in written]
        return (
            [Value(n, x, v.axes) for n, x, v in zip(last, new_state, later, strict=True)],
            [Value(n, x, self._axes([1], most)) for n, x in zip(by_row, twice, strict=True)],
        )

    def softmax(self, logits: Value, name: str) -> None:
        """Add probabilities, an output of the whole graph."""
        self._add("Softmax", [logits.name], [name], axis=-1)

    def whole(self, given: onnx.ValueInfoProto, returned: onnx.ValueInfoProto) -> onnx.GraphProto:
        """Return the graph, from its input to its output."""
        constants = list(self.constants.values())
        return helper.make_graph(self.nodes, "clipocr", [given], [returned], constants)

    def _two_steps_later(
        self, body: nn.Module, state: Sequence[Value], fixed: Sequence[Value], most: int
    ) -> list[Value]:
        """Return a state in whose sizes, if they grow, is neither 0 nor 1."""
        examples = first = [value.example for value in state]
        with torch.no_grad():
            for _ in range(2):
                _, examples, _ = body(examples, [value.example for value in fixed])
        return [
            Value(value.name, later.contiguous(), self._axes(_differing(before, later), most - 1))
            for value, before, later in zip(state, first, examples, strict=True)
        ]

    def _axes(self, of_times: Sequence[int] = (), most: int = 0) -> dict[int, Any]:
        """Return the axes that vary: the batch's, and those that are as long as a loop's times.

        PyTorch wants to be told the most times, because a recogniser has no positions beyond.
        """
        return {0: self._batch} | {axis: Dim("times", max=most) for axis in of_times}

    def _part(
        self, module: nn.Module, inputs: Sequence[Value | Sequence[Value]]
    ) -> tuple[_Part, Any]:
        """Export a module, unless it has been; return it, and what it makes of the examples."""
        examples = _mapped(lambda value: value.example, inputs)
        # Before exporting: `normalize` keeps its constants, and while PyTorch exports, a tensor
        # that is made has no numbers, so the next real picture would be normalised by nothing.
        with torch.no_grad():
            returned = module.eval()(*examples)
        if module not in self._parts:
            graph = _export(module, examples, _mapped(lambda value: dict(value.axes), inputs))
            constants = {tensor.name: self._share(tensor) for tensor in graph.initializer}
            del graph.initializer[:], graph.value_info[:]
            self._parts[module] = _Part(graph, constants)
        return self._parts[module], returned

    def _share(self, tensor: onnx.TensorProto) -> str:
        """Take a constant, unless its like is here; return its name."""
        values = numpy_helper.to_array(tensor)
        key = hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes()).digest()
        if key not in self.constants:
            kept = onnx.TensorProto()
            kept.CopyFrom(tensor)
            kept.name = f"constant_{len(self.constants)}"
            self.constants[key] = kept
        return self.constants[key].name

    def _constant(self, value: np.ndarray) -> str:
        return self._share(numpy_helper.from_array(value))

    def _add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def _copy(
        self, module: nn.Module, part: _Part, given: Mapping[str, str]
    ) -> tuple[str, onnx.GraphProto]:
        """Return a part for one use, with a prefix to its names but for inputs and constants."""
        self._num_uses += 1
        prefix = f"{self._num_uses}_{type(module).__name__}/"
        copy = onnx.GraphProto()
        copy.CopyFrom(part.graph)
        _rename(copy, prefix, {**given, **part.constants})
        return prefix, copy


def _export(
    module: nn.Module, examples: tuple[Any, ...], dynamic_shapes: tuple[Any, ...]
) -> onnx.GraphProto:
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns of its own and its libraries' affairs; the result is checked instead.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
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


def _rename(graph: onnx.GraphProto, prefix: str, names: Mapping[str, str]) -> None:
    """Give every value its name by `names`, or else a prefix."""

    def renamed(name: str) -> str:
        # An input that is left out has no name.
        return names.get(name, prefix + name) if name else ""

    for value in (*graph.input, *graph.output):
        value.name = renamed(value.name)
    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, prefix, names)


def _forget_sizes(value: onnx.ValueInfoProto) -> None:
    """Leave those open that vary, because some grow from one time to the next."""
    for size in value.type.tensor_type.shape.dim:
        if size.dim_param and size.dim_param != _BATCH:
            size.ClearField("dim_param")


def _differing(before: Tensor, later: Tensor) -> list[int]:
    return [axis for axis in range(before.ndim) if before.shape[axis] != later.shape[axis]]


def _names(values: Sequence[onnx.ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


def _as_list(returned: Tensor | list[Tensor]) -> list[Tensor]:
    return [returned] if isinstance(returned, Tensor) else returned


def _flat(inputs: Sequence[Value | Sequence[Value]]) -> list[Value]:
    return [v for given in inputs for v in ([given] if isinstance(given, Value) else given)]


def _mapped(function: Any, inputs: Sequence[Value | Sequence[Value]]) -> tuple[Any, ...]:
    """Apply a function to each value, alone or in a list."""
    return tuple(
        function(given) if isinstance(given, Value) else [function(value) for value in given]
        for given in inputs
    )
