"""Which products are found to normalise, and with which constants: what is nearly one gets the constant of what it is, or none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import milpverify as mv
from milpverify.frontends.network import load_network
from milpverify.graph import Graph, evaluate_all
from milpverify.operators import Norm, Product

N = 6


class Written(nn.Module):
    """A function of x (batch, n)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def centred(x: Tensor) -> Tensor:
    return x - mean(x)


def nearly(x: Tensor) -> Tensor:
    return x - 0.1667 * x.sum(-1, keepdim=True)


def twice(x: Tensor) -> Tensor:
    """The mean is taken in two places."""
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + 1e-5)


FOUND: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "layer_norm": (lambda x: F.layer_norm(x, (N,), eps=1e-3), math.sqrt(N - 1), 1e-3),
    "written out": (twice, math.sqrt(N - 1), 1e-5),
    "var": (lambda x: centred(x) * (x.var(-1, keepdim=True, unbiased=False) + 1e-5) ** -0.5, math.sqrt(N - 1), 1e-5),
    "unbiased": (lambda x: centred(x) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5), (N - 1) / math.sqrt(N), 1e-5),
    "std plus eps": (lambda x: centred(x) / (x.std(-1, keepdim=True, unbiased=False) + 1e-2), math.sqrt(N - 1), 1e-4),
    "no eps": (lambda x: centred(x) / x.std(-1, keepdim=True, unbiased=False), math.sqrt(N - 1), 0.0),
    "rms": (lambda x: x * torch.rsqrt(mean(x * x) + 1e-6), math.sqrt(N), 1e-6),
    "rms of a multiple": (lambda x: 3 * x / torch.sqrt(mean((2 * x) ** 2) + 1e-6), 1.5 * math.sqrt(N), 1e-6),
    "l2": (lambda x: x / torch.sqrt((x * x).sum(-1, keepdim=True)), 1.0, 0.0),
    "l2, clamped": (lambda x: x / torch.sqrt((x * x).sum(-1, keepdim=True)).clamp(min=1e-12), 1.0, 0.0),
    "groups": (lambda x: F.group_norm(x.reshape(1, N, 1), 2, eps=1e-4).flatten(1), math.sqrt(2), 1e-4),
    "instances": (lambda x: F.instance_norm(x.reshape(1, 2, 3), eps=1e-4).flatten(1), math.sqrt(2), 1e-4),
    "columns": (lambda x: F.layer_norm(x.reshape(1, 3, 2).transpose(1, 2), (3,), eps=1e-4).flatten(1), math.sqrt(2), 1e-4),
    # What is centred by another mean, or hardly, has the constant of the mean of squares.
    "another mean": (lambda x: (x - mean(2 * x)) / torch.sqrt(mean((x - mean(2 * x)) ** 2) + 1e-5), math.sqrt(N), 1e-5),
    "hardly centred": (lambda x: nearly(x) * torch.rsqrt(mean(nearly(x) ** 2) + 1e-5), math.sqrt(N), 1e-5),
}  # fmt: skip
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "variance of another": lambda x: centred(x) / torch.sqrt(mean(centred(x.flip(-1) * x) ** 2) + 1e-5),
    "variance of others": lambda x: centred(x) * torch.rsqrt(mean(centred(x)[:, :3] ** 2) + 1e-5),
    "another row's variance": lambda x: (x.reshape(-1, 2, 3) * torch.rsqrt(mean(x.reshape(-1, 2, 3) ** 2) + 1e-5).flip(1)).flatten(1),
    "negative eps": lambda x: centred(x) / torch.sqrt(mean(centred(x) ** 2) - 1e-5),
    "shifted": lambda x: (x + 0.5) / torch.sqrt(mean(x**2) + 1e-5),
    "clipped norm": lambda x: x / torch.sqrt((x * x).sum(-1, keepdim=True)).clamp(min=1e-12, max=0.5),
    "fourth powers": lambda x: x * torch.rsqrt(mean(x**4) + 1e-5),
    "no root": lambda x: x / (mean(x**2) + 1e-5),
}


def norms(graph: Graph) -> list[Norm | None]:
    return [node.op.norm for node in graph.nodes if isinstance(node.op, Product)]


def read(function: Callable[[Tensor], Tensor]) -> Graph:
    return load_network(Written(function).eval(), mv.Box([1.0] * N, [2.0 + k for k in range(N)]), None).graph


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    function, largest, floor = FOUND[name]
    (norm,) = norms(graph := read(function))
    assert norm is not None
    assert largest <= norm.largest <= largest * (1 + 1e-6)  # of float32 constants
    assert norm.floor <= floor * (1 + 1e-6) and norm.floor == pytest.approx(floor, rel=1e-5)
    x = 2 * torch.rand(4000, N, dtype=torch.float64) - 1
    x[:2000] *= 10 ** (-8 * torch.rand(2000, 1, dtype=torch.float64))
    for node in graph.nodes:
        if isinstance(node.op, Product):
            a, b = (evaluate_all(graph, x)[i] for i in node.inputs)
            assert ((a * b).abs() <= a.abs() / ((a / norm.largest).square() + norm.floor).sqrt() * (1 + 1e-6)).all() and (b >= 0).all()


@pytest.mark.parametrize("name", OTHERS)
def test_not_found(name: str) -> None:
    assert not any(norms(read(OTHERS[name])))


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...] = (1, N)) -> onnx.ModelProto:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], [numpy_helper.from_array(v, k) for k, v in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


ONES = np.ones(N, dtype=np.float32)
ONNX = {
    "LayerNormalization": (model([helper.make_node("LayerNormalization", ["x", "w"], ["y"], epsilon=1e-5)], {"w": ONES}), N - 1),
    "RMSNormalization": (model([helper.make_node("RMSNormalization", ["x", "w"], ["y"], epsilon=1e-5)], {"w": ONES}), N),
    "InstanceNormalization": (
        model([helper.make_node("InstanceNormalization", ["x", "w", "b"], ["y"])], {"w": ONES[:2], "b": 0 * ONES[:2]}, (1, 2, 3)), 2
    ),
    "GroupNormalization": (
        model([helper.make_node("GroupNormalization", ["x", "w", "b"], ["y"], num_groups=2)], {"w": ONES, "b": 0 * ONES}, (1, N, 1)), 2
    ),
    "parts": (
        model(
            [
                helper.make_node("ReduceMean", ["x", "axes"], ["m"]),
                helper.make_node("Sub", ["x", "m"], ["d"]),
                helper.make_node("Pow", ["d", "two"], ["q"]),
                helper.make_node("ReduceMean", ["q", "axes"], ["v"]),
                helper.make_node("Add", ["v", "eps"], ["e"]),
                helper.make_node("Sqrt", ["e"], ["s"]),
                helper.make_node("Div", ["d", "s"], ["y"]),
            ],
            {"axes": np.array([-1]), "two": np.float32([2]), "eps": np.float32([1e-5])},
        ), N - 1,
    ),
    "ReduceL2": (
        model([helper.make_node("ReduceL2", ["x", "axes"], ["n"]), helper.make_node("Div", ["x", "n"], ["y"])], {"axes": np.array([-1])}), 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONNX)
def test_the_other_door(name: str, tmp_path: Path) -> None:
    proto, square = ONNX[name]
    onnx.save(proto, tmp_path / "net.onnx")
    graph = load_network(tmp_path / "net.onnx", mv.Box([1.0] * N, [2.0 + k for k in range(N)]), None).graph
    (norm,) = norms(graph)
    assert norm is not None and norm.largest == pytest.approx(math.sqrt(square), rel=1e-9)


def test_an_exported_layer_is_found(tmp_path: Path) -> None:
    net, path = nn.Sequential(nn.Linear(N, N), nn.LayerNorm(N), nn.ReLU()).eval(), tmp_path / "net.onnx"
    box = mv.Box([0.0] * N, [1.0] * N)
    for opset in (14, 17):  # before opset 17 in parts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (torch.zeros(1, N),), str(path), dynamo=False, opset_version=opset)
        (norm,) = norms(load_network(path, box, None).graph)
        assert norm is not None and norm.largest == pytest.approx(math.sqrt(N - 1), rel=1e-9)
