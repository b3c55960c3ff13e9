"""Graphs put together from modules, run by onnxruntime beside the same modules run in PyTorch."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from eager import Eager
from onnx import TensorProto, helper
from torch import Tensor, nn

from clipocr.train.deploy import onnx_format
from clipocr.train.deploy.onnx_graph import OPSET, OnnxGraph
from clipocr.train.models.assembly import Assembler, V


class Layer(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x_BD: Tensor) -> Tensor:
        return x_BD @ self.weight


class Start(nn.Module):
    def forward(self, x_BD: Tensor) -> list[Tensor]:
        return [0 * x_BD[:, 0], x_BD.new_zeros(x_BD.shape[0], 0)]


class AddUp(nn.Module):
    """Adds a row's largest number to its sum, and keeps all sums, until one is above 4."""

    def forward(
        self, state: list[Tensor], fixed: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        sum_B, sums_BT = state
        sum_B = sum_B + fixed[0].amax(dim=1)
        sums_BT = torch.cat([sums_BT, sum_B[:, None]], dim=1)
        return (sum_B <= 4).all(), [sum_B, sums_BT], [sums_BT.sum(dim=1, keepdim=True)]


class Both(nn.Module):
    def forward(self, x_BD: Tensor, written_BT1: Tensor) -> Tensor:
        return x_BD / 100 + written_BT1.sum(dim=1)


def assembled(graph: Assembler[V], x: V) -> V:
    """Two modules of one weight, of which one is called twice, around a loop."""
    weight = torch.linspace(-1, 1, 64 * 64).view(64, 64)
    layer, other = Layer(weight), Layer(weight)
    (x,) = graph.call(layer, x)
    state, (written,) = graph.loop(AddUp(), graph.call(Start(), x), [x], 9)
    assert len(state) == 2
    for each in (layer, other):
        (x,) = graph.call(each, x)
    return graph.call(Both(), x, written)[0]


def test_loops_and_calls_compute_what_they_do_in_pytorch() -> None:
    graph = OnnxGraph()
    graph.softmax(assembled(graph, graph.input("x", torch.ones(2, 64))), "y")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 64]) for n in "xy")
    opsets = [helper.make_opsetid("", OPSET)]
    ir_version = helper.find_min_ir_version_for(opsets)
    model = helper.make_model(graph.whole(x, y), opset_imports=opsets, ir_version=ir_version)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    generator = torch.Generator().manual_seed(0)
    times = set()
    for batch, scale in ((1, 10.0), (2, 1.0), (7, 0.01)):
        given = scale * torch.rand(batch, 64, generator=generator)
        eager = Eager()
        expected = assembled(eager, given).softmax(dim=-1).detach().numpy()
        times.update(eager.times)
        (computed,) = session.run(["y"], {"x": given.numpy()})
        np.testing.assert_allclose(computed, expected, atol=1e-5)
    # The loop ended by itself, after one time, after several, and after the most.
    assert min(times) == 1
    assert max(times) == 9
    assert len(times) == 3
    # 16 KB of weight are there once, though three calls of two modules use them.
    assert len(model.SerializeToString()) < 1.5 * 4 * 64 * 64


def test_more_than_a_file_can_hold_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_format, "MOST_BYTES", 10_000)
    with pytest.raises(onnx_format.UsageError, match=r"weights.*pass --format safetensors"):
        onnx_format.write_onnx(tmp_path / "m.onnx", Layer(torch.zeros(64, 64)), {})
    assert not list(tmp_path.iterdir())
